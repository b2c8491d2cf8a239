//! The node for real: its helper, processes of this host, and its controllers at the embedded API server.
//!
//! No test harness: the process helper is this binary executed again, and has to be it before anything else runs.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::needless_pass_by_value,
    reason = "tests"
)]

mod cluster;
mod containers;
mod deployments;
mod nodes;
mod processes;
mod volumes;

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::LocalBoxFuture;

type Test = (&'static str, fn() -> LocalBoxFuture<'static, ()>);

macro_rules! tests {
    ($($module:ident::$name:ident),* $(,)?) => {
        &[$((concat!(stringify!($module), "::", stringify!($name)), || $module::$name().boxed_local())),*]
    };
}

const TESTS: &[Test] = tests![
    processes::runs_with_the_declared_environment_and_its_own_session,
    processes::tells_why_a_program_does_not_start,
    processes::tells_exit_codes_and_signals,
    processes::ends_what_a_program_left_behind,
    processes::no_orphan_survives_the_helpers_socket,
    processes::recovers_from_a_killed_helper,
    processes::starts_at_once,
    processes::runs_as_another_user_where_files_allow_it,
    deployments::a_deployment_becomes_ready_endpoints_and_goes,
    containers::a_crash_loop_is_told_as_kubernetes_does,
    containers::what_cannot_run_says_why,
    containers::an_unhealthy_container_is_restarted,
    deployments::termination_waits_for_the_sidecar,
    deployments::a_new_template_replaces_the_old_one,
    deployments::dependents_follow_their_owner_and_namespaces_empty,
    deployments::dependents_stay_where_their_owner_lets_them_go,
    nodes::shutdown_ends_every_process,
    nodes::two_nodes_run_side_by_side,
    volumes::lie_where_the_container_wants_them,
    volumes::follow_their_objects,
    volumes::are_refused_by_name,
    volumes::init_containers_run_in_order_and_again_when_they_fail,
    volumes::last_words_are_read_from_the_declared_file,
];

fn main() {
    if ember_node::helper::is_invoked() {
        ember_node::helper::main();
        return;
    }
    if std::env::args().nth(1).as_deref() == Some(cluster::TEST_APP) {
        cluster::test_app();
        return;
    }
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let listing = std::env::args().any(|a| a == "--list");
    let mut failed = Vec::new();
    let mut ran = 0;
    for (name, test) in
        TESTS.iter().filter(|(name, _)| filter.as_ref().is_none_or(|f| name.contains(f.as_str())))
    {
        if listing {
            println!("{name}: test");
            continue;
        }
        ran += 1;
        let began = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let run = || {
            let limited =
                async { tokio::time::timeout(Duration::from_secs(60), test()).await.expect("in time") };
            runtime.block_on(limited);
        };
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(run));
        println!("test {name} ... {} ({:?})", if outcome.is_ok() { "ok" } else { "FAILED" }, began.elapsed());
        if outcome.is_err() {
            failed.push(*name);
        }
        runtime.shutdown_timeout(Duration::from_secs(5));
    }
    println!("\ntest result: {} ran, {} failed {failed:?}", ran, failed.len());
    if !failed.is_empty() {
        std::process::exit(1);
    }
}
