//! Bodies: collected within a bound, and handed on.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use pin_project_lite::pin_project;

pin_project! {
    /// The body of an answer: the inner service's own, or one that was remembered.
    pub struct ReplyBody<B> where B: Body {
        #[pin]
        inner: Inner<B>,
    }
}

pin_project! {
    #[project = Projected]
    enum Inner<B> where B: Body {
        Whole { bytes: Option<Bytes>, trailers: Option<HeaderMap> },
        Through { #[pin] body: B },
        Longer { first: VecDeque<Bytes>, rest: Pin<Box<B>> },
        Broken { first: VecDeque<Bytes>, error: Option<B::Error> },
    }
}

impl<B: Body<Data = Bytes>> ReplyBody<B> {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::with_trailers(bytes, None)
    }

    pub(crate) fn through(body: B) -> Self {
        Self { inner: Inner::Through { body } }
    }

    fn with_trailers(bytes: Bytes, trailers: Option<HeaderMap>) -> Self {
        let bytes = Some(bytes).filter(|bytes| !bytes.is_empty());
        Self { inner: Inner::Whole { bytes, trailers } }
    }
}

impl<B: Body<Data = Bytes>> Body for ReplyBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().inner.project() {
            Projected::Whole { bytes, trailers } => {
                let data = bytes.take().map(Frame::data);
                Poll::Ready(data.or_else(|| trailers.take().map(Frame::trailers)).map(Ok))
            }
            Projected::Through { body } => body.poll_frame(context),
            Projected::Longer { first, rest } => match first.pop_front() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None => Poll::Ready(ready!(rest.as_mut().poll_frame(context))),
            },
            Projected::Broken { first, error } => match first.pop_front() {
                Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
                None => Poll::Ready(error.take().map(Err)),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Whole { bytes, trailers } => bytes.is_none() && trailers.is_none(),
            Inner::Through { body } => body.is_end_stream(),
            Inner::Longer { first, rest } => first.is_empty() && rest.is_end_stream(),
            Inner::Broken { first, error } => first.is_empty() && error.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let total = |first: &VecDeque<Bytes>| first.iter().map(|bytes| bytes.len() as u64).sum::<u64>();
        match &self.inner {
            Inner::Whole { bytes, .. } => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Inner::Through { body } => body.size_hint(),
            Inner::Longer { first, rest } => {
                let (first, rest) = (total(first), rest.size_hint());
                let mut hint = SizeHint::new();
                if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(first)) {
                    hint.set_upper(upper);
                }
                hint.set_lower(rest.lower().saturating_add(first));
                hint
            }
            Inner::Broken { .. } => SizeHint::new(),
        }
    }
}

/// What was read of an answer's body.
pub(crate) enum Read<B: Body> {
    /// All of it, and the body to hand on.
    Whole(Bytes, ReplyBody<B>),
    /// There is more than may be kept.
    Longer(ReplyBody<B>),
    /// It broke off before its end.
    Broken(ReplyBody<B>),
}

/// Reads the body of an answer, as long as it can be kept.
pub(crate) async fn read_answer<B: Body<Data = Bytes>>(body: B, bytes_max: usize) -> Read<B> {
    let mut rest = Box::pin(body);
    let mut first = VecDeque::new();
    let (mut bytes, mut trailers) = (0, None);
    loop {
        match rest.frame().await {
            None => break,
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    bytes += data.len();
                    first.push_back(data);
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
            Some(Err(error)) => {
                return Read::Broken(ReplyBody { inner: Inner::Broken { first, error: Some(error) } });
            }
        }
        if bytes > bytes_max {
            return Read::Longer(ReplyBody { inner: Inner::Longer { first, rest } });
        }
    }
    let whole = joined(first, bytes);
    Read::Whole(whole.clone(), ReplyBody::with_trailers(whole, trailers))
}

/// Why the body of a request cannot be used.
pub(crate) enum Unread {
    TooLarge,
    Broken,
}

/// Reads the body of a request, without its trailers.
pub(crate) async fn read_request<B: Body>(body: B, bytes_max: usize) -> Result<Bytes, Unread> {
    let fits = |bytes: u64| usize::try_from(bytes).is_ok_and(|bytes| bytes <= bytes_max);
    if !fits(body.size_hint().lower()) {
        return Err(Unread::TooLarge);
    }
    let mut body = std::pin::pin!(body);
    let (mut chunks, mut bytes) = (VecDeque::new(), 0usize);
    while let Some(frame) = body.as_mut().frame().await {
        let Ok(mut data) = frame.map_err(|_| Unread::Broken)?.into_data() else { continue };
        bytes = bytes.saturating_add(data.remaining());
        if bytes > bytes_max {
            return Err(Unread::TooLarge);
        }
        chunks.push_back(data.copy_to_bytes(data.remaining()));
    }
    Ok(joined(chunks, bytes))
}

fn joined(mut chunks: VecDeque<Bytes>, bytes: usize) -> Bytes {
    if chunks.len() <= 1 {
        return chunks.pop_front().unwrap_or_default();
    }
    let mut whole = BytesMut::with_capacity(bytes);
    for chunk in chunks {
        whole.extend_from_slice(&chunk);
    }
    whole.freeze()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::FutureExt;
    use futures_util::stream::{Iter, iter};
    use http::HeaderValue;
    use http_body_util::StreamBody;

    use super::*;

    type Frames<E> = StreamBody<Iter<std::vec::IntoIter<Result<Frame<Bytes>, E>>>>;

    fn body<E>(chunks: &[&'static str], end: Option<Result<Frame<Bytes>, E>>) -> Frames<E> {
        let frames = chunks.iter().map(|chunk| Ok(Frame::data(Bytes::from_static(chunk.as_bytes()))));
        StreamBody::new(iter(frames.chain(end).collect::<Vec<_>>()))
    }

    fn trailers() -> HeaderMap {
        HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("7"))])
    }

    fn read<E>(chunks: &[&'static str], end: Option<Result<Frame<Bytes>, E>>) -> Read<Frames<E>> {
        read_answer(body(chunks, end), 5).now_or_never().expect("the frames are there")
    }

    fn drain<B: Body<Data = Bytes, Error: std::fmt::Debug>>(
        reply: ReplyBody<B>,
    ) -> (Bytes, Option<HeaderMap>) {
        let whole = reply.collect().now_or_never().expect("the frames are there").expect("no error");
        let trailers = whole.trailers().cloned();
        (whole.to_bytes(), trailers)
    }

    #[test]
    fn an_answer_is_whole_up_to_the_last_byte() {
        for (chunks, expected) in
            [(&[][..], ""), (&["12345"], "12345"), (&["1", "23", "", "45"], "12345"), (&["", ""], "")]
        {
            let Read::Whole(bytes, reply) = read::<Infallible>(chunks, Some(Ok(Frame::trailers(trailers()))))
            else {
                panic!("{chunks:?} fits");
            };
            assert_eq!(bytes, expected);
            assert_eq!(reply.size_hint().exact(), Some(expected.len() as u64));
            assert!(!reply.is_end_stream(), "trailers are to come");
            assert_eq!(drain(reply), (Bytes::from(expected), Some(trailers())));
        }
        let empty: ReplyBody<Frames<Infallible>> = ReplyBody::whole(Bytes::new());
        assert!(empty.is_end_stream());
    }

    #[test]
    fn a_longer_answer_is_handed_on_whole() {
        for chunks in [&["123456"][..], &["12345", "6"], &["1234", "5678", "9"]] {
            let Read::Longer(reply) = read::<Infallible>(chunks, Some(Ok(Frame::trailers(trailers()))))
            else {
                panic!("{chunks:?} does not fit");
            };
            assert!(!reply.is_end_stream());
            assert!(reply.size_hint().lower() > 5, "{chunks:?}");
            assert_eq!(drain(reply), (Bytes::from(chunks.concat()), Some(trailers())));
        }
    }

    #[test]
    fn a_broken_answer_is_handed_on_up_to_its_error() {
        let Read::Broken(mut reply) = read(&["12", "3"], Some(Err("gone"))) else {
            panic!("there is an error");
        };
        let mut next = || reply.frame().now_or_never().expect("the frames are there");
        for expected in ["12", "3"] {
            let data = next().and_then(Result::ok).and_then(|frame| frame.into_data().ok());
            assert_eq!(data, Some(Bytes::from(expected)));
        }
        assert_eq!(next().and_then(Result::err), Some("gone"));
        assert!(next().is_none());
        assert!(reply.is_end_stream());
    }

    #[test]
    fn requests_are_bounded_to_the_byte() {
        let read = |chunks: &[&'static str]| {
            read_request(body::<Infallible>(chunks, None), 5).now_or_never().expect("the frames are there")
        };
        for chunks in [&[][..], &["12345"], &["1", "2345"]] {
            assert_eq!(read(chunks).ok(), Some(Bytes::from(chunks.concat())));
        }
        for chunks in [&["123456"][..], &["12345", "6"]] {
            assert!(matches!(read(chunks), Err(Unread::TooLarge)), "{chunks:?}");
        }
    }
}
