//! Measures Ember as its users meet it.

use ember_allocator::Allocator;

/// That of `ember`, whose activator is measured here.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> std::process::ExitCode {
    ember_bench::main()
}
