//! Names that the API makes: `generatename_test`.

use ember_tests::instance::Ember;
use serde_json::json;

use crate::objects::{create, greeter, only_says, ready};

/// The longest prefix that leaves room for all that is made of a name.
const PREFIX: &str = "a-name-of-forty-four-characters-that-begins-";

#[tokio::test(flavor = "multi_thread")]
async fn test_service_generate_name() {
    assert_eq!(PREFIX.len(), 44);
    let ember = Ember::start().await;
    let service = greeter("Service", &json!({"generateName": PREFIX}), "noodles");
    let (name, _) = create(&ember, "services", &service).await;
    assert!(name.starts_with(PREFIX) && name.len() > PREFIX.len(), "{name}");
    let service = ready(&ember, "services", &name).await;
    assert!(service["status"]["url"].as_str().unwrap().contains(&name), "{service}");
    only_says(&ember, &name, "noodles").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn test_route_and_config_generate_name() {
    let ember = Ember::start().await;
    let configuration = greeter("Configuration", &json!({"generateName": PREFIX}), "noodles");
    let (configuration, _) = create(&ember, "configurations", &configuration).await;
    assert!(configuration.starts_with(PREFIX) && configuration.len() > PREFIX.len(), "{configuration}");
    ready(&ember, "configurations", &configuration).await;
    let route = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Route", "metadata": {"generateName": PREFIX},
        "spec": {"traffic": [{"configurationName": configuration, "percent": 100}]}
    });
    let (route, _) = create(&ember, "routes", &route).await;
    assert!(route.starts_with(PREFIX) && route != configuration, "{route}");
    ready(&ember, "routes", &route).await;
    only_says(&ember, &route, "noodles").await;
}
