//! A request's body on its way to a backend that may hand the request back.
//!
//! The connection's task sends the body; the exchange keeps a hand on it. So the body can be taken back when the
//! backend has refused the request, and it ends when the exchange does.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt as _, StreamBody};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::body::{Body, Error};

/// How much of a body that was sent already is kept, in bytes, until the backend has answered.
pub(crate) const KEPT: usize = 64 << 10;

/// The exchange's hand on the body.
#[derive(Debug)]
pub(crate) struct Upload(Arc<Mutex<State>>);

/// The body as the connection's task sees it.
#[derive(Debug)]
pub(crate) struct Sending(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// `None`: cut, or taken back.
    body: Option<Body>,
    /// What was sent, while all of it is known.
    sent: Option<Vec<Part>>,
    bytes: usize,
    sender: Option<Waker>,
}

#[derive(Debug, Clone)]
enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// A body of which a part was sent before.
#[derive(Debug)]
pub(crate) struct Replay {
    sent: VecDeque<Part>,
    rest: Body,
}

/// Shares a body between an exchange and the connection's task.
pub(crate) fn share(body: Body) -> (Upload, Sending) {
    let state = State { body: Some(body), sent: Some(Vec::new()), bytes: 0, sender: None };
    let state = Arc::new(Mutex::new(state));
    (Upload(Arc::clone(&state)), Sending(state))
}

/// Reads ahead in `body` until `until`, up to [`KEPT`] bytes. Returns the same body, and whether all of it has come.
pub(crate) async fn read_ahead(mut body: Body, until: Instant) -> (Body, bool) {
    let mut sent = VecDeque::new();
    let mut bytes = 0;
    let mut whole = false;
    while bytes <= KEPT && sent.len() < KEPT / 64 {
        let Ok(frame) = tokio::time::timeout_at(until, body.frame()).await else { break };
        let part = match frame {
            Some(Ok(frame)) => Part::of(&frame),
            Some(Err(error)) => {
                // To be met again by who reads on.
                let broken = futures::stream::iter([Err::<Frame<Bytes>, _>(error)]);
                body = Body::stream(StreamBody::new(broken));
                break;
            }
            None => {
                body = Body::empty();
                whole = bytes <= KEPT;
                break;
            }
        };
        if let Some(Part::Data(data)) = &part {
            bytes += data.len();
        }
        sent.extend(part);
    }
    let body = if sent.is_empty() { body } else { Body::replay(Replay { sent, rest: body }) };
    (body, whole)
}

impl Part {
    /// `None` for a frame that is neither data nor trailers.
    fn of(frame: &Frame<Bytes>) -> Option<Self> {
        match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Some(Self::Data(data.clone())),
            (None, Some(trailers)) => Some(Self::Trailers(trailers.clone())),
            (None, None) => None,
        }
    }
}

impl Upload {
    /// The backend has answered: the body will not be needed again.
    pub(crate) fn settle(&self) {
        self.0.lock().sent = None;
    }

    /// Takes the whole body back, unless too much of it was sent or it broke.
    pub(crate) fn take_back(self) -> Option<Body> {
        let mut state = self.0.lock();
        let rest = state.body.take();
        let sent = state.sent.take()?;
        let rest = rest?;
        Some(if sent.is_empty() { rest } else { Body::replay(Replay { sent: sent.into(), rest }) })
    }

    /// Ends the upload.
    pub(crate) fn cut(self) {
        let (body, sender) = {
            let mut state = self.0.lock();
            state.sent = None;
            (state.body.take(), state.sender.take())
        };
        drop(body);
        if let Some(sender) = sender {
            sender.wake();
        }
    }
}

impl Sending {
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut state = self.0.lock();
        let Some(body) = &mut state.body else {
            return Poll::Ready(Some(Err(h2::Error::from(h2::Reason::CANCEL).into())));
        };
        let polled = Pin::new(body).poll_frame(cx);
        match &polled {
            Poll::Pending => match &mut state.sender {
                Some(sender) => sender.clone_from(cx.waker()),
                None => state.sender = Some(cx.waker().clone()),
            },
            Poll::Ready(Some(Ok(frame))) => state.keep(frame),
            Poll::Ready(Some(Err(_))) => state.sent = None,
            Poll::Ready(None) => {}
        }
        polled
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.0.lock().body.as_ref().is_some_and(Body::is_end_stream)
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.0.lock().body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl State {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        let Some(sent) = &mut self.sent else { return };
        let Some(part) = Part::of(frame) else { return };
        self.bytes += frame.data_ref().map_or(0, Bytes::len);
        // A flood of empty frames counts, too.
        if self.bytes > KEPT || sent.len() >= KEPT / 64 {
            self.sent = None;
        } else {
            sent.push(part);
        }
    }
}

impl Replay {
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.sent.pop_front() {
            Some(Part::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Part::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.sent.is_empty() && self.rest.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let sent: u64 = self
            .sent
            .iter()
            .map(|part| if let Part::Data(data) = part { data.len() as u64 } else { 0 })
            .sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + sent);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + sent);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `count` frames of `body`, or all.
    async fn send(sending: &mut Sending, count: usize) {
        for _ in 0..count {
            let frame = std::future::poll_fn(|cx| sending.poll_frame(cx)).await;
            if frame.is_none() {
                return;
            }
        }
    }

    fn stream(frames: Vec<Frame<Bytes>>) -> Body {
        let frames = frames.into_iter().map(Ok::<_, std::convert::Infallible>);
        Body::stream(http_body_util::StreamBody::new(futures::stream::iter(frames)))
    }

    #[tokio::test]
    async fn a_body_comes_back_whole() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", http::HeaderValue::from_static("1"));
        for count in 0..4 {
            let frames = vec![
                Frame::data(Bytes::from_static(b"one")),
                Frame::data(Bytes::from_static(b"two")),
                Frame::trailers(trailers.clone()),
            ];
            let (upload, mut sending) = share(stream(frames));
            send(&mut sending, count).await;
            let body = upload.take_back().unwrap();
            let collected = http_body_util::BodyExt::collect(body).await.unwrap();
            assert_eq!(collected.trailers(), Some(&trailers), "{count} sent");
            assert_eq!(collected.to_bytes(), "onetwo", "{count} sent");
            let after = std::future::poll_fn(|cx| sending.poll_frame(cx)).await;
            assert!(after.unwrap().is_err(), "it is sent no further");
        }
    }

    #[tokio::test]
    async fn what_was_sent_is_kept_up_to_a_limit_and_until_the_answer() {
        let large =
            || stream(vec![Frame::data(Bytes::from(vec![0; KEPT])), Frame::data(Bytes::from_static(b"x"))]);
        let (upload, mut sending) = share(large());
        send(&mut sending, 1).await;
        assert_eq!(upload.take_back().unwrap().collect(KEPT + 1).await.unwrap().len(), KEPT + 1);
        let (upload, mut sending) = share(large());
        send(&mut sending, 2).await;
        assert!(upload.take_back().is_none());
        let (upload, _sending) = share(Body::full("x"));
        upload.settle();
        assert!(upload.take_back().is_none());
    }

    #[tokio::test]
    async fn cutting_wakes_who_sends() {
        let (upload, mut sending) =
            share(Body::stream(http_body_util::StreamBody::new(futures::stream::pending::<
                Result<Frame<Bytes>, std::convert::Infallible>,
            >())));
        let sender = tokio::spawn(async move { std::future::poll_fn(|cx| sending.poll_frame(cx)).await });
        tokio::task::yield_now().await;
        upload.cut();
        assert!(sender.await.unwrap().unwrap().is_err());
    }
}
