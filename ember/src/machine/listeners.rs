//! Who listens on a port, by `/proc`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its number.
    pub(crate) pid: u32,
    /// What it is called.
    pub(crate) name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

/// The process that keeps others from listening on `address`, as far as this user may see it.
pub(crate) fn holder(address: SocketAddr) -> Option<Process> {
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| std::fs::read_to_string(file).unwrap_or_default());
    let inode = tables.iter().find_map(|table| inode(table, address))?;
    owner(inode)
}

/// The socket in a table of `/proc/net` that listens on `address`, or on every address with its port.
fn inode(table: &str, address: SocketAddr) -> Option<u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (words.get(1)?, words.get(3)?, words.get(9)?);
        let (ip, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let ip = parse_ip(ip)?;
        let meets = ip == address.ip() || ip.is_unspecified() || address.ip().is_unspecified();
        (*state == LISTEN && port == address.port() && meets).then(|| inode.parse().ok())?
    })
}

/// An address as `/proc/net` writes it: words of four bytes in the machine's order.
fn parse_ip(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let digits = hex.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

fn owner(inode: u64) -> Option<Process> {
    let socket = format!("socket:[{inode}]");
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(files) = std::fs::read_dir(entry.path().join("fd")) else { continue };
        let has = files.flatten().any(|file| {
            std::fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == socket.as_str())
        });
        if has {
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            return Some(Process { pid, name: name.trim().to_owned() });
        }
    }
    None
}

/// Why an address cannot be listened on, in words that tell what to do.
pub(crate) fn explain(address: SocketAddr, flag: &str, error: &std::io::Error) -> String {
    let free = SocketAddr::new(address.ip(), 0);
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            let who =
                holder(address).map_or_else(|| "another program".to_owned(), |process| process.to_string());
            format!(
                "cannot listen on {address} ({flag}): {who} listens there; end it, or choose another port \
                 ({flag} {free} picks a free one)"
            )
        }
        std::io::ErrorKind::PermissionDenied => format!(
            "cannot listen on {address} ({flag}): ports below 1024 are not for this user; choose a higher one, for \
             instance {flag} {}:8080",
            address.ip()
        ),
        std::io::ErrorKind::AddrNotAvailable => format!(
            "cannot listen on {address} ({flag}): this machine has no such address; 127.0.0.1 is for this machine \
             alone, 0.0.0.0 for all its addresses"
        ),
        _ => format!("cannot listen on {address} ({flag}): {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_and_its_process_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(holder(address).unwrap().pid, std::process::id());
        let error = std::net::TcpListener::bind(address).unwrap_err();
        let text = explain(address, "--http", &error);
        assert!(text.contains(&format!("(process {}) listens there", std::process::id())), "{text}");
        assert!(text.contains("--http 127.0.0.1:0"), "{text}");
    }

    #[test]
    fn tables_are_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000 0 4711 1 0 100\n\
                     1: 0100007F:0050 00000000:0000 01 00000000:00000000 00:00000000 00000000  1000 0 4712 1 0 100\n";
        assert_eq!(inode(table, "127.0.0.1:8080".parse().unwrap()), Some(4711));
        assert_eq!(inode(table, "0.0.0.0:8080".parse().unwrap()), Some(4711));
        assert_eq!(inode(table, "127.0.0.2:8080".parse().unwrap()), None);
        assert_eq!(inode(table, "127.0.0.1:80".parse().unwrap()), None, "it does not listen");
    }
}
