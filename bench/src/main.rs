//! Measures Ember as its users meet it.

fn main() -> std::process::ExitCode {
    ember_bench::main()
}
