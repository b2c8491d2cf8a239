//! What goes on under the load: second by second a pod more and a pod less, the path changed, activators restarted.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};

use super::world::World;

/// How many pods are ready at least, once there were that many.
const PODS: usize = 3;
/// Every so many seconds the activators come into the path or out of it.
const SWITCH_EVERY: u64 = 3;
/// Every so many seconds one of them is restarted, which takes a little less.
const RESTART_EVERY: u64 = 4;

/// Goes on for `length`, then waits for what it has begun.
pub(super) async fn run(world: &Arc<World>, length: Duration) {
    let end = Instant::now() + length;
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut deeds = Deeds { world, tasks: JoinSet::new() };
    for second in 0_u64.. {
        seconds.tick().await;
        if Instant::now() >= end {
            break;
        }
        deeds.begin(|world| async move { world.add_pod().await });
        if world.ready_pods() > PODS {
            deeds.begin(|world| async move { world.remove_pod().await });
        }
        if second % SWITCH_EVERY == SWITCH_EVERY - 1 {
            deeds.begin(|world| async move { world.switch_path().await });
        }
        if second % RESTART_EVERY == RESTART_EVERY - 1 {
            deeds.begin(|world| async move { world.restart_activator().await });
        }
        while let Some(done) = deeds.tasks.try_join_next() {
            deeds.ended(done);
        }
    }
    while let Some(done) = deeds.tasks.join_next().await {
        deeds.ended(done);
    }
}

/// What is being done.
struct Deeds<'a> {
    world: &'a Arc<World>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Deeds<'_> {
    fn begin<T>(&mut self, deed: impl FnOnce(Arc<World>) -> T)
    where
        T: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.tasks.spawn(deed(Arc::clone(self.world)));
    }

    fn ended(&self, done: Result<anyhow::Result<()>, JoinError>) {
        if let Err(error) = done.map_err(anyhow::Error::from).flatten() {
            self.world.fault(&error);
        }
    }
}
