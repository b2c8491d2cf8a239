//! `config-features`: what users may put into a pod's spec, and optional behaviour.

use std::collections::BTreeMap;

use super::ConfigError;

/// The ConfigMap's name.
pub const NAME: &str = "config-features";

/// A feature's setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flag {
    /// Refused.
    #[default]
    Disabled,
    /// Accepted where it is asked for.
    Allowed,
    /// Accepted, and on where that makes a difference.
    Enabled,
}

impl Flag {
    /// The setting as the ConfigMap spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "Disabled",
            Self::Allowed => "Allowed",
            Self::Enabled => "Enabled",
        }
    }

    /// Whether it is not refused.
    #[must_use]
    pub const fn is_allowed(self) -> bool {
        !matches!(self, Self::Disabled)
    }

    /// Whether it is on.
    #[must_use]
    pub const fn is_enabled(self) -> bool {
        matches!(self, Self::Enabled)
    }
}

/// How much security is filled into pods that say nothing about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SecurePodDefaults {
    /// None.
    #[default]
    Disabled,
    /// Everything but running as another user than root.
    AllowRootBounded,
    /// Everything.
    Enabled,
}

impl SecurePodDefaults {
    /// The setting as the ConfigMap spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "Disabled",
            Self::AllowRootBounded => "AllowRootBounded",
            Self::Enabled => "Enabled",
        }
    }

    /// Whether anything is filled in.
    #[must_use]
    pub const fn is_on(self) -> bool {
        !matches!(self, Self::Disabled)
    }
}

macro_rules! features {
    ($($(#[$doc:meta])* $field:ident = $key:literal, $default:ident;)*) => {
        /// Parsed `config-features`.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Features {
            $($(#[$doc])* pub $field: Flag,)*
            /// Security of pods that say nothing about it.
            pub secure_pod_defaults: SecurePodDefaults,
        }

        impl Default for Features {
            fn default() -> Self {
                Self { $($field: Flag::$default,)* secure_pod_defaults: SecurePodDefaults::Disabled }
            }
        }

        impl Features {
            fn flag(&mut self, key: &str) -> Option<&mut Flag> {
                match key {
                    $($key => Some(&mut self.$field),)*
                    _ => None,
                }
            }
        }
    };
}

features! {
    /// More than one container.
    multi_container = "multi-container", Enabled;
    /// Probes on containers that do not serve.
    multi_container_probing = "multi-container-probing", Disabled;
    /// `affinity`.
    pod_spec_affinity = "kubernetes.podspec-affinity", Disabled;
    /// `topologySpreadConstraints`.
    pod_spec_topology_spread_constraints = "kubernetes.podspec-topologyspreadconstraints", Disabled;
    /// `fieldRef` and `resourceFieldRef` in the environment.
    pod_spec_field_ref = "kubernetes.podspec-fieldref", Disabled;
    /// `hostAliases`.
    pod_spec_host_aliases = "kubernetes.podspec-hostaliases", Disabled;
    /// `nodeSelector`.
    pod_spec_node_selector = "kubernetes.podspec-nodeselector", Disabled;
    /// `runtimeClassName`.
    pod_spec_runtime_class_name = "kubernetes.podspec-runtimeclassname", Disabled;
    /// The pod's `securityContext`.
    pod_spec_security_context = "kubernetes.podspec-securitycontext", Disabled;
    /// `shareProcessNamespace`.
    pod_spec_share_process_namespace = "kubernetes.podspec-shareprocessnamespace", Disabled;
    /// `hostIPC`.
    pod_spec_host_ipc = "kubernetes.podspec-hostipc", Disabled;
    /// `hostPID`.
    pod_spec_host_pid = "kubernetes.podspec-hostpid", Disabled;
    /// `hostNetwork`.
    pod_spec_host_network = "kubernetes.podspec-hostnetwork", Disabled;
    /// `priorityClassName`.
    pod_spec_priority_class_name = "kubernetes.podspec-priorityclassname", Disabled;
    /// `schedulerName`.
    pod_spec_scheduler_name = "kubernetes.podspec-schedulername", Disabled;
    /// Added capabilities of containers.
    container_spec_add_capabilities = "kubernetes.containerspec-addcapabilities", Disabled;
    /// `tolerations`.
    pod_spec_tolerations = "kubernetes.podspec-tolerations", Disabled;
    /// Volumes of kind `emptyDir`.
    pod_spec_volumes_empty_dir = "kubernetes.podspec-volumes-emptydir", Enabled;
    /// Volumes of kind `hostPath`.
    pod_spec_volumes_host_path = "kubernetes.podspec-volumes-hostpath", Disabled;
    /// `mountPropagation`.
    pod_spec_volumes_mount_propagation = "kubernetes.podspec-volumes-mount-propagation", Disabled;
    /// Volumes of kind `csi`.
    pod_spec_volumes_csi = "kubernetes.podspec-volumes-csi", Disabled;
    /// Volumes of kind `ephemeral`.
    pod_spec_volumes_ephemeral = "kubernetes.podspec-volumes-ephemeral", Disabled;
    /// Volumes of kind `image`.
    pod_spec_volumes_image = "kubernetes.podspec-volumes-image", Disabled;
    /// Volumes of kind `persistentVolumeClaim`.
    pod_spec_persistent_volume_claim = "kubernetes.podspec-persistent-volume-claim", Disabled;
    /// Writing to persistent volume claims.
    pod_spec_persistent_volume_write = "kubernetes.podspec-persistent-volume-write", Disabled;
    /// Init containers.
    pod_spec_init_containers = "kubernetes.podspec-init-containers", Disabled;
    /// `dnsPolicy`.
    pod_spec_dns_policy = "kubernetes.podspec-dnspolicy", Disabled;
    /// `dnsConfig`.
    pod_spec_dns_config = "kubernetes.podspec-dnsconfig", Disabled;
    /// Pod information mounted into queue-proxy.
    queue_proxy_mount_pod_info = "queueproxy.mount-podinfo", Disabled;
    /// Default resources of queue-proxy.
    queue_proxy_resource_defaults = "queueproxy.resource-defaults", Disabled;
    /// Routing by the header `Knative-Serving-Tag`.
    tag_header_based_routing = "tag-header-based-routing", Disabled;
    /// Finding out whether a container speaks HTTP/2.
    autodetect_http2 = "autodetect-http2", Disabled;
}

impl Features {
    /// Parses the ConfigMap's data; values that are no setting are ignored.
    ///
    /// # Errors
    /// None so far; the signature is that of the other ConfigMaps.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for (key, raw) in data {
            if key == "secure-pod-defaults" {
                match raw.to_ascii_lowercase().as_str() {
                    "disabled" => config.secure_pod_defaults = SecurePodDefaults::Disabled,
                    "allowrootbounded" => config.secure_pod_defaults = SecurePodDefaults::AllowRootBounded,
                    "enabled" => config.secure_pod_defaults = SecurePodDefaults::Enabled,
                    _ => {}
                }
            } else if let Some(flag) = config.flag(key) {
                match raw.to_ascii_lowercase().as_str() {
                    "disabled" => *flag = Flag::Disabled,
                    "allowed" => *flag = Flag::Allowed,
                    "enabled" => *flag = Flag::Enabled,
                    _ => {}
                }
            }
        }
        Ok(config)
    }
}
