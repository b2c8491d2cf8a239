//! Addresses of one instance: a /20 of 127.0.0.0/8, one address for each pod.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Addresses in a block.
const BLOCK_SIZE: u32 = 1 << 12;
/// 127.16.0.0: the blocks below hold addresses that distributions and container engines use.
const FIRST_BLOCK: u32 = 0x7f10_0000;
/// One past 127.255.255.255.
const END: u32 = 0x8000_0000;
/// Ports that apps are given: above what is commonly registered, below Linux's ephemeral range.
const APP_PORTS: RangeInclusive<u16> = 20_000..=32_767;
/// Ports of one instance: neighbouring blocks have disjoint ranges, so that instances side by side cannot race.
const APP_PORTS_PER_BLOCK: u16 = 1_064;

/// A /20 of 127.0.0.0/8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block(u32);

/// Keeps a claimed [`Block`] from being claimed by another process; dropping it (or dying) gives it back.
#[derive(Debug)]
pub struct BlockClaim {
    block: Block,
    _lock: UnixListener,
}

impl BlockClaim {
    /// The block that is claimed.
    #[must_use]
    pub fn block(&self) -> Block {
        self.block
    }
}

impl Block {
    /// The block that `addr` lies in; `None` outside of 127.16.0.0–127.255.255.255.
    #[must_use]
    pub fn containing(addr: Ipv4Addr) -> Option<Self> {
        let bits = u32::from(addr);
        (FIRST_BLOCK..END).contains(&bits).then_some(Self(bits & !(BLOCK_SIZE - 1)))
    }

    /// Claims the first block that no other process of this network namespace holds.
    ///
    /// The lock is an abstract Unix socket named after the block: like loopback addresses it belongs to the network
    /// namespace, and the kernel releases it when the process ends, however it ends.
    ///
    /// # Errors
    /// `AddrNotAvailable` when every block is taken; otherwise what the system says.
    pub fn claim() -> io::Result<BlockClaim> {
        for first in (FIRST_BLOCK..END).step_by(BLOCK_SIZE as usize) {
            let block = Self(first);
            let name = format!("knative-ember/{}", block.first());
            match UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?) {
                Ok(lock) => return Ok(BlockClaim { block, _lock: lock }),
                Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "every /20 of 127.0.0.0/8 is claimed"))
    }

    /// The block's first address, its network address.
    #[must_use]
    pub fn first(self) -> Ipv4Addr {
        Ipv4Addr::from(self.0)
    }

    /// The address `offset` after the first, inside of the block (offsets wrap).
    #[must_use]
    pub fn address(self, offset: u16) -> Ipv4Addr {
        Ipv4Addr::from(self.0 + u32::from(offset) % BLOCK_SIZE)
    }

    /// The ports that apps of an instance with this block are given.
    #[must_use]
    pub fn app_ports(self) -> RangeInclusive<u16> {
        let slices = (APP_PORTS.end() - APP_PORTS.start() + 1) / APP_PORTS_PER_BLOCK;
        let index = (self.0 - FIRST_BLOCK) / BLOCK_SIZE % u32::from(slices);
        // The remainder of a division by a u16 fits in a u16.
        let start = APP_PORTS.start() + u16::try_from(index).unwrap_or(0) * APP_PORTS_PER_BLOCK;
        start..=start + (APP_PORTS_PER_BLOCK - 1)
    }
}

/// Hands out a block's addresses. An address that was given back is used again as late as possible, so that what
/// still speaks of the old pod does not reach the new one.
#[derive(Debug)]
pub struct Addresses {
    block: Block,
    taken: BTreeSet<u32>,
    cursor: u32,
}

impl Addresses {
    /// All of `block` except its first and last address and `reserved`.
    #[must_use]
    pub fn new(block: Block, reserved: impl IntoIterator<Item = Ipv4Addr>) -> Self {
        let mut taken: BTreeSet<u32> = reserved.into_iter().map(u32::from).collect();
        taken.extend([block.0, block.0 + BLOCK_SIZE - 1]);
        Self { block, taken, cursor: 0 }
    }

    /// A free address; `None` when all are taken.
    pub fn allocate(&mut self) -> Option<Ipv4Addr> {
        for step in 0..BLOCK_SIZE {
            let offset = (self.cursor + step) % BLOCK_SIZE;
            if self.taken.insert(self.block.0 + offset) {
                self.cursor = offset + 1;
                return Some(Ipv4Addr::from(self.block.0 + offset));
            }
        }
        None
    }

    /// Gives an address back.
    pub fn release(&mut self, addr: Ipv4Addr) {
        self.taken.remove(&u32::from(addr));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_exclusive_and_end_with_the_claim() {
        let first = Block::claim().unwrap();
        let second = Block::claim().unwrap();
        assert_ne!(first.block(), second.block());
        assert_eq!(u32::from(first.block().first()) % BLOCK_SIZE, 0);
        let freed = first.block();
        drop(first);
        let name = format!("knative-ember/{}", freed.first());
        let _again = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
    }

    #[test]
    fn neighbouring_blocks_have_disjoint_ports_outside_of_the_ephemeral_range() {
        let ranges: Vec<_> = (0..12).map(|i| Block(FIRST_BLOCK + i * BLOCK_SIZE).app_ports()).collect();
        for (i, range) in ranges.iter().enumerate() {
            assert!(*range.start() >= 20_000 && *range.end() < 32_768, "{range:?}");
            assert!(ranges[..i].iter().all(|other| other.end() < range.start()));
        }
    }

    #[test]
    fn an_address_is_reused_last() {
        let block = Block(FIRST_BLOCK);
        let reserved = [block.address(1), block.address(3)];
        let mut addresses = Addresses::new(block, reserved);
        assert_eq!(addresses.allocate(), Some(block.address(2)));
        assert_eq!(addresses.allocate(), Some(block.address(4)));
        addresses.release(block.address(2));
        assert_eq!(addresses.allocate(), Some(block.address(5)));
        let rest = std::iter::from_fn(|| addresses.allocate()).collect::<Vec<_>>();
        assert_eq!(rest.len(), BLOCK_SIZE as usize - 2 - 2 - 2);
        assert_eq!(rest.last(), Some(&block.address(2)));
        assert!(rest.iter().all(|ip| !reserved.contains(ip)));
    }
}
