//! What a node and the built-in controllers do for pods on one machine.
