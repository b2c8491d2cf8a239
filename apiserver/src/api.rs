//! Requests in, answers out: routing, and the forms of answers. What the verbs do is in [`crate::verbs`].

mod answer;
mod list;
mod parameters;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use answer::{json_answer, warning_text};
use parameters::{dry_run, field_manager, field_validation, include, selector, version_parameter};

use crate::admission::Admission;
use crate::body::Body;
use crate::kinds::Kinds;
use crate::logs::PodLogs;
use crate::object::Object;
use crate::openapi::OpenApi;
use crate::request::{self, Query, Target};
use crate::resource::{CONFIG_MAPS, Resource};
use crate::status::ApiError;
use crate::store::Store;
use crate::verbs::Call;
use crate::{discovery, pod_log, strategy, unstored, verbs};

/// Largest request body, as on a cluster.
const BODY_LIMIT: usize = 3 << 20;
/// So much more of a body that is too large is received and dropped, for the connection's sake.
const BODY_IGNORED: usize = 16 << 20;
/// A client on a socket has this long to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Where Knative's configuration lives.
const SYSTEM_NAMESPACE: &str = "knative-serving";

pub(crate) use answer::{failure, last};

/// The server without its sockets.
pub(crate) struct Api {
    pub store: Store,
    pub kinds: Kinds,
    pub openapi: OpenApi,
    pub admission: Arc<dyn Admission>,
    /// Version of the ConfigMaps that admission has seen.
    pub configured: Mutex<Option<u64>>,
    pub logs: OnceLock<Arc<dyn PodLogs>>,
    pub bookmark_interval: Duration,
    pub system_user: String,
}

/// Who asks.
#[derive(Clone)]
pub(crate) struct Caller {
    pub user: String,
    /// In process: the objects are typed there already, and nobody reads warnings.
    pub local: bool,
    /// Ends the caller's streams.
    pub stop: CancellationToken,
}

type Answer = Result<Response<Body>, ApiError>;

impl Api {
    /// Answers one request; failures become `Status` objects.
    pub(crate) async fn handle<B>(self: &Arc<Self>, request: Request<B>, caller: &Caller) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (parts, body) = request.into_parts();
        let mut warnings = Vec::new();
        let mut response = match read(&parts, body, caller).await {
            Ok(body) => {
                let answer = self.route(&parts, &body, caller, &mut warnings).await;
                answer.unwrap_or_else(|error| failure(&error))
            }
            Err(Unread { error, whole: true }) => failure(&error),
            Err(Unread { error, whole: false }) => last(failure(&error), parts.version),
        };
        for warning in &warnings {
            if let Ok(value) = HeaderValue::from_str(&warning_text(warning)) {
                response.headers_mut().append(header::WARNING, value);
            }
        }
        response
    }

    async fn route(
        self: &Arc<Self>,
        parts: &Parts,
        body: &Bytes,
        caller: &Caller,
        warnings: &mut Vec<String>,
    ) -> Answer {
        let decoded: Vec<String> = parts
            .uri
            .path()
            .split('/')
            .filter(|segment| !segment.is_empty())
            .map(|segment| request::decode(segment, false))
            .collect();
        let segments: Vec<&str> = decoded.iter().map(String::as_str).collect();
        let (group, version, rest) = match segments.as_slice() {
            ["api", "v1", rest @ ..] => ("", "v1", rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            other => return self.fixed(parts, other),
        };
        if rest.is_empty() {
            only_get(parts)?;
            let list = discovery::resource_list(group, version).ok_or_else(ApiError::no_such_path)?;
            return Ok(json_answer(StatusCode::OK, Bytes::from(list.to_string())));
        }
        if let Some(answer) = unstored::answer((group, version, rest), parts, body, caller) {
            return Ok(json_answer(StatusCode::CREATED, Bytes::from(answer?.to_string())));
        }
        let target = request::target(group, version, rest)?;
        self.resource(parts, body, target, caller, warnings).await
    }

    /// Paths that name no resource.
    fn fixed(&self, parts: &Parts, segments: &[&str]) -> Answer {
        only_get(parts)?;
        let value = |value: Value| Ok(json_answer(StatusCode::OK, Bytes::from(value.to_string())));
        match segments {
            ["healthz" | "readyz" | "livez", ..] => {
                let mut response = Response::new(Body::from(Bytes::from_static(b"ok")));
                let plain = HeaderValue::from_static("text/plain; charset=utf-8");
                response.headers_mut().insert(header::CONTENT_TYPE, plain);
                Ok(response)
            }
            ["version"] => value(discovery::version()),
            ["api" | "apis"] => {
                let core = segments == ["api"];
                match discovery::aggregated(&parts.headers) {
                    Some((version, media_type)) => {
                        let body = Bytes::from(discovery::aggregate(version, core).to_string());
                        let mut response = json_answer(StatusCode::OK, body);
                        let media_type = HeaderValue::from_static(media_type);
                        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
                        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
                        Ok(response)
                    }
                    None if core => value(discovery::core_versions()),
                    None => value(discovery::group_list()),
                }
            }
            ["apis", group] => value(discovery::single_group(group).ok_or_else(ApiError::no_such_path)?),
            ["openapi", "v3"] => Ok(json_answer(StatusCode::OK, self.openapi.root(&self.kinds).clone())),
            ["openapi", "v3", path @ ..] => {
                let document =
                    self.openapi.document(&self.kinds, &path.join("/")).ok_or_else(ApiError::no_such_path)?;
                Ok(json_answer(StatusCode::OK, document.clone()))
            }
            [] => value(
                json!({ "paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v3", "/readyz", "/version"] }),
            ),
            _ => Err(ApiError::no_such_path()),
        }
    }

    async fn resource(
        self: &Arc<Self>,
        parts: &Parts,
        body: &Bytes,
        target: Target,
        caller: &Caller,
        warnings: &mut Vec<String>,
    ) -> Answer {
        let query = Query::parse(parts.uri.query());
        let format = request::format(&parts.headers)?;
        let call = Call {
            target: &target,
            headers: &parts.headers,
            body,
            caller,
            dry_run: dry_run(&query.all("dryRun"))?,
            validation: field_validation(&query, caller)?,
            field_manager: field_manager(&query, &parts.method)?,
            force: query.get("force").map(|_| query.flag("force")),
        };
        let include = include(&query)?;
        only_read_across_namespaces(&parts.method, &target)?;
        let one = |status, object: &Arc<Object>| Ok(self.one(status, &target, object, format, include));
        match (&parts.method, target.name.is_some(), target.subresource.as_deref()) {
            (&Method::GET, _, None) if query.flag("watch") => {
                self.watch(&query, &target, caller, format, include)
            }
            (&Method::GET, false, None) => self.list(&query, &target, format, include),
            (&Method::POST, false, None) => {
                let object = verbs::create(self, &call, warnings).await?;
                one(StatusCode::CREATED, &object)
            }
            (&Method::DELETE, false, None) => {
                let options = verbs::delete_options(&call, &query)?;
                let selector = selector(&query, &target)?;
                let limit = query.number::<usize>("limit")?.filter(|limit| *limit > 0);
                let gone = verbs::delete_collection(self, &call, &selector, limit, &options).await?;
                Ok(self.many(&target, &gone, &json!({}), format, include))
            }
            (&Method::GET, true, None | Some("status")) => {
                served(target.resource(), target.subresource.as_deref())?;
                let current = self.store.last_version();
                if let Some(asked) = version_parameter(&query)?.filter(|asked| *asked > current) {
                    return Err(ApiError::version_from_the_future(asked, current));
                }
                one(StatusCode::OK, &verbs::get(self, &target)?)
            }
            (&Method::DELETE, true, None) => {
                let options = verbs::delete_options(&call, &query)?;
                match verbs::delete(self, &call, &options).await? {
                    verbs::Deleted::Gone(object) => {
                        let status = crate::status::success(target.resource(), object.name(), object.uid());
                        Ok(json_answer(StatusCode::OK, Bytes::from(status.to_string())))
                    }
                    verbs::Deleted::Marked(object) => one(StatusCode::OK, &object),
                }
            }
            (&Method::PUT | &Method::PATCH, true, subresource @ (None | Some("status" | "finalize"))) => {
                served(target.resource(), subresource)?;
                let modified = verbs::modify(self, &call, parts.method == Method::PATCH, warnings).await?;
                let status = if modified.created { StatusCode::CREATED } else { StatusCode::OK };
                one(status, &modified.object)
            }
            (&Method::GET, true, Some("scale")) if target.resource().scale => {
                let scale = strategy::scale_of(&verbs::get(self, &target)?.value());
                Ok(json_answer(StatusCode::OK, Bytes::from(scale.to_string())))
            }
            (&Method::PUT | &Method::PATCH, true, Some("scale")) if target.resource().scale => {
                let modified = verbs::modify(self, &call, parts.method == Method::PATCH, warnings).await?;
                let scale = strategy::scale_of(&modified.object.value());
                Ok(json_answer(StatusCode::OK, Bytes::from(scale.to_string())))
            }
            (&Method::GET, true, Some("log")) if target.resource().is("", "pods") => {
                self.pod_log(&query, &target, caller).await
            }
            (_, _, Some(subresource)) => {
                served(target.resource(), Some(subresource))?;
                Err(ApiError::method_not_allowed())
            }
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    async fn pod_log(&self, query: &Query, target: &Target, caller: &Caller) -> Answer {
        let pod = verbs::get(self, target)?;
        let stream = pod_log::open(&self.logs, &pod, target.resource(), query).await?;
        let stop = caller.stop.clone().cancelled_owned();
        let stream = futures::StreamExt::take_until(stream, stop);
        let mut response = Response::new(Body::Stream(Box::pin(stream)));
        let plain = HeaderValue::from_static("text/plain");
        response.headers_mut().insert(header::CONTENT_TYPE, plain);
        Ok(response)
    }

    /// Gives admission the ConfigMaps as they are now, if they changed since the last time.
    pub(crate) fn configure_admission(&self) {
        let published = self.store.published(CONFIG_MAPS);
        let mut seen = self.configured.lock();
        if *seen == Some(published) {
            return;
        }
        let mut maps = BTreeMap::new();
        for object in self.store.list(CONFIG_MAPS, Some(SYSTEM_NAMESPACE)).objects {
            let value = object.value();
            let data = value.get("data").and_then(Value::as_object);
            let data = data
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
                .collect::<BTreeMap<_, _>>();
            maps.insert(object.name().to_owned(), data);
        }
        self.admission.configure(&maps);
        *seen = Some(published);
    }
}

/// Of a namespaced kind the objects of all namespaces can be read together, and nothing else: a client that has lost
/// its namespace is not to empty the machine. Built-in kinds have the path without the method, custom ones not even that.
fn only_read_across_namespaces(method: &Method, target: &Target) -> Result<(), ApiError> {
    let resource = target.resource();
    if !resource.namespaced || target.namespace.is_some() || matches!(*method, Method::GET | Method::HEAD) {
        Ok(())
    } else if resource.custom {
        Err(ApiError::no_such_path())
    } else {
        Err(ApiError::method_not_allowed())
    }
}

/// The subresources a resource has.
fn served(resource: &Resource, subresource: Option<&str>) -> Result<(), ApiError> {
    let ok = match subresource {
        None => true,
        Some("status") => resource.status,
        Some("scale") => resource.scale,
        Some("finalize") => resource.is("", "namespaces"),
        Some("log") => resource.is("", "pods"),
        Some(_) => false,
    };
    if ok { Ok(()) } else { Err(ApiError::no_such_path()) }
}

fn only_get(parts: &Parts) -> Result<(), ApiError> {
    if matches!(parts.method, Method::GET | Method::HEAD) {
        Ok(())
    } else {
        Err(ApiError::method_not_allowed())
    }
}

/// Why a body was not taken, and whether it was received to its end all the same.
struct Unread {
    error: ApiError,
    whole: bool,
}

async fn read<B>(parts: &Parts, body: B, caller: &Caller) -> Result<Bytes, Unread>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if parts.method == Method::GET {
        return Ok(Bytes::new());
    }
    let taken = Box::pin(take(body));
    if caller.local {
        return taken.await;
    }
    tokio::time::timeout(BODY_TIMEOUT, taken).await.unwrap_or_else(|_| {
        let error = ApiError::bad_request("the request's body did not arrive in time");
        Err(Unread { error, whole: false })
    })
}

async fn take<B>(body: B) -> Result<Bytes, Unread>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut body = std::pin::pin!(body);
    match Limited::new(body.as_mut(), BODY_LIMIT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.downcast_ref::<LengthLimitError>().is_some() => {
            // Who is still sending may not look for the answer before it is done.
            let rest = async {
                let mut left = BODY_IGNORED;
                while let Some(Ok(frame)) = body.as_mut().frame().await {
                    left = left.checked_sub(frame.data_ref().map_or(0, Bytes::len))?;
                }
                body.is_end_stream().then_some(())
            };
            let whole = rest.await.is_some();
            Err(Unread { error: ApiError::too_large(BODY_LIMIT), whole })
        }
        Err(e) => {
            let error = ApiError::bad_request(format!("the request's body could not be read: {e}"));
            Err(Unread { error, whole: false })
        }
    }
}
