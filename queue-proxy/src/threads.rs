//! How many threads carry requests.

/// Where the container's CPU limit is found.
const CPU_MAX: &str = "/sys/fs/cgroup/cpu.max";
/// More would only wait: one thread carries what most pods are sent.
const MOST: usize = 2;
/// A machine without a limit on the container has to have this many CPUs before the sidecar takes a second one.
const PLENTY: usize = 4;

/// One or two, by the container's CPU limit; without a limit by the CPUs of the machine.
#[must_use]
pub fn by_cpu_limit() -> usize {
    let limit = std::fs::read_to_string(CPU_MAX).ok().and_then(|text| cpus(&text));
    let machine = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    threads(limit, machine)
}

fn threads(limit: Option<usize>, machine: usize) -> usize {
    match limit {
        Some(limit) => limit.clamp(1, MOST),
        None if machine >= PLENTY => MOST,
        None => 1,
    }
}

/// CPUs of a limit as the kernel states it, quota and period in microseconds; rounded up. `max` is no limit.
fn cpus(cpu_max: &str) -> Option<usize> {
    let (quota, period) = cpu_max.trim().split_once(' ')?;
    let (quota, period) = (quota.parse::<usize>().ok()?, period.parse::<usize>().ok()?);
    (period > 0).then(|| quota.div_ceil(period))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_rounded_up() {
        assert_eq!(cpus("max 100000\n"), None);
        assert_eq!(cpus("25000 100000\n"), Some(1));
        assert_eq!(cpus("100000 100000"), Some(1));
        assert_eq!(cpus("150000 100000"), Some(2));
        for text in ["", "x", "1", "1 0", "-1 100000", "1 x"] {
            assert_eq!(cpus(text), None, "{text:?}");
        }
    }

    #[test]
    fn one_or_two() {
        assert_eq!([threads(Some(1), 64), threads(Some(2), 64), threads(Some(32), 64)], [1, 2, 2]);
        assert_eq!([threads(None, 1), threads(None, 2), threads(None, 4), threads(None, 64)], [1, 1, 2, 2]);
        assert_eq!(threads(Some(0), 8), 1);
    }
}
