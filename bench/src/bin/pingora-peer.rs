//! A bare pingora proxy: passes requests on, and adds the client's address. What `dataplane` measures as `pingora`.
//!
//! It takes a queue-proxy's environment: it listens on `QUEUE_SERVING_PORT` of 127.0.0.1 and passes requests on to
//! `USER_PORT`. As with a queue-proxy, port 8013 means HTTP/2 without TLS on both sides.

use std::process::ExitCode;

use async_trait::async_trait;
use pingora_core::Result;
use pingora_core::apps::HttpServerOptions;
use pingora_core::server::Server;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_http::RequestHeader;
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

/// The data port of sidecars whose app speaks HTTP/2.
const H2C_PORT: u16 = 8013;

struct Bare {
    app: u16,
    h2c: bool,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut Self::CTX) -> Result<Box<HttpPeer>> {
        let mut peer = HttpPeer::new(("127.0.0.1", self.app), false, String::new());
        if self.h2c {
            peer.options.set_http_version(2, 2);
        }
        Ok(Box::new(peer))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        (): &mut Self::CTX,
    ) -> Result<()> {
        if let Some(client) = session.client_addr().and_then(|address| address.as_inet()) {
            request.insert_header("x-forwarded-for", client.ip().to_string())?;
        }
        Ok(())
    }
}

fn port(name: &str) -> Result<u16, String> {
    let value = std::env::var(name).map_err(|_| format!("{name} is not set"))?;
    value.parse().map_err(|_| format!("{name} must be a port, not {value:?}"))
}

fn main() -> ExitCode {
    match port("QUEUE_SERVING_PORT").and_then(|own| Ok((own, port("USER_PORT")?))) {
        Ok((own, app)) => serve(own, app),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(own: u16, app: u16) -> ! {
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: 1000, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let h2c = own == H2C_PORT;
    let mut service = http_proxy_service(&server.configuration, Bare { app, h2c });
    if h2c && let Some(proxy) = service.app_logic_mut() {
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        proxy.server_options = Some(options);
    }
    service.add_tcp(&format!("127.0.0.1:{own}"));
    server.add_service(service);
    server.run_forever()
}
