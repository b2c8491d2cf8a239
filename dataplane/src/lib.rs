//! What every hop of a request shares: the streaming proxy engine, probes, statistics, admission, wire messages.

pub mod io;
