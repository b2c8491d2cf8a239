//! The groups `networking.knative.dev` (labels, annotations) and `networking.internal.knative.dev` (kinds).

pub mod v1alpha1;

use crate::omitempty::string_enum;

/// The group of the labels and annotations.
pub const GROUP: &str = "networking.knative.dev";
/// The group of the kinds.
pub const INTERNAL_GROUP: &str = "networking.internal.knative.dev";

string_enum! {
    /// What a container speaks.
    ProtocolType {
        /// HTTP/1.1.
        #[default]
        Http1 = "http1",
        /// HTTP/2 without TLS.
        H2c = "h2c",
    }
}
