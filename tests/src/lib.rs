//! End-to-end and conformance tests, golden data.
