//! Frames between a socket and what speaks over it.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, Stream};
use tokio::io::AsyncRead;
use tokio::time::{Sleep, sleep};

use super::frame::Opcode;
use super::outbox::{Outbox, Writer};
use super::reader::{Incoming, Reader};

/// What speaks over a socket. Frames, pings, pongs and the close handshake are none of its business.
pub(super) trait Speaker: Send {
    /// Something that happens beside the socket.
    type Event: Send;

    /// Queues what there is to say. Called before every wait.
    fn collect(&mut self, outbox: &mut Outbox);

    /// Tells whether a further message may be read now.
    fn listens(&self, outbox: &Outbox) -> bool;

    /// Waits for what happens beside the socket; never ends when nothing does. Dropping it loses nothing.
    fn event(&mut self) -> impl Future<Output = Self::Event> + Send;

    /// Takes what happened.
    fn handle(&mut self, event: Self::Event);

    /// Is told that the client sent a frame, whatever it was.
    fn heard(&mut self) {}

    /// Hears a ping or a pong; tells whether a ping is to be answered.
    fn control(&mut self) -> bool {
        true
    }

    /// Takes a whole message.
    fn message(&mut self, message: Message, outbox: &mut Outbox);

    /// Is told that a message was larger than it may be, whose end was not awaited.
    fn too_large(&mut self, outbox: &mut Outbox);

    /// Is told that the queue outgrew its bytes and was dropped.
    fn overflow(&mut self, outbox: &mut Outbox);

    /// Looks at the time; tells when to look again at the latest.
    fn tick(&mut self, outbox: &mut Outbox) -> Duration;
}

/// A whole message from the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// UTF-8.
    Text(Vec<u8>),
    /// Bytes.
    Binary(Vec<u8>),
}

impl Message {
    /// Returns its bytes.
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Text(bytes) | Self::Binary(bytes) => bytes.len(),
        }
    }
}

enum Step<E> {
    Incoming(Incoming),
    Speaker(E),
    Wrote(io::Result<usize>),
    Stuck,
    Tick,
}

/// Runs while much waits and the peer takes nothing of it.
type Stuck = Option<Pin<Box<Sleep>>>;

/// Carries frames until the connection ends; gives the close code. `interval` is the time between pings.
pub(super) async fn pump<R, W, P>(
    reader: Reader<R>,
    write: &mut W,
    speaker: &mut P,
    outbox: &mut Outbox,
    interval: Duration,
) -> u16
where
    R: AsyncRead + Unpin + Send,
    W: Writer,
    P: Speaker,
{
    // The stream keeps the future of a frame that is half read, so that waiting for something else loses nothing.
    let incoming = stream::unfold(reader, |reader| async move {
        let (reader, incoming) = reader.next().await;
        Some((incoming, reader))
    });
    tokio::pin!(incoming);
    let tick = sleep(interval);
    tokio::pin!(tick);
    let mut stuck: Stuck = None;
    loop {
        speaker.collect(outbox);
        if let Some(code) = outbox.end() {
            outbox.farewell(write).await;
            return code;
        }
        match step(speaker, outbox, incoming.as_mut(), write, tick.as_mut(), &mut stuck).await {
            Step::Incoming(incoming) => take(incoming, speaker, outbox),
            Step::Speaker(event) => speaker.handle(event),
            Step::Wrote(Ok(0) | Err(_)) => return 1006,
            Step::Wrote(Ok(bytes)) => {
                outbox.wrote(bytes);
                stuck = None;
            }
            // A peer that asks and does not read is heard no more, so that its queue would never overflow.
            Step::Stuck => {
                outbox.cut();
                speaker.overflow(outbox);
            }
            Step::Tick => {
                let wait = speaker.tick(outbox).min(interval);
                send(Opcode::Ping, &[], speaker, outbox);
                let next = tick.deadline() + wait;
                tick.as_mut().reset(next);
            }
        }
    }
}

/// Waits for the next thing to happen. Whatever is ready is taken before anything is written, so that answers gather
/// into one write.
async fn step<W: Writer, P: Speaker>(
    speaker: &mut P,
    outbox: &mut Outbox,
    mut incoming: Pin<&mut impl Stream<Item = Incoming>>,
    write: &mut W,
    tick: Pin<&mut Sleep>,
    stuck: &mut Stuck,
) -> Step<P::Event> {
    let unwritten = outbox.gather();
    let listening = speaker.listens(outbox);
    if outbox.presses() {
        if let Some(wrote) = outbox.write_now(write).await {
            return Step::Wrote(wrote);
        }
        stuck.get_or_insert_with(|| Box::pin(sleep(outbox.slow_wait())));
    }
    tokio::select! {
        biased;
        event = speaker.event() => Step::Speaker(event),
        Some(incoming) = incoming.next(), if listening => Step::Incoming(incoming),
        wrote = outbox.write(write), if unwritten => Step::Wrote(wrote),
        () = elapsed(stuck), if stuck.is_some() => Step::Stuck,
        () = tick => Step::Tick,
    }
}

/// Waits for the end of a time that was set.
pub(super) async fn elapsed(time: &mut Option<Pin<Box<Sleep>>>) {
    match time {
        Some(time) => time.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Takes what came from the client.
fn take<P: Speaker>(incoming: Incoming, speaker: &mut P, outbox: &mut Outbox) {
    speaker.heard();
    match incoming {
        Incoming::Message(message) => speaker.message(message, outbox),
        Incoming::Ping(payload) => {
            if speaker.control() {
                send(Opcode::Pong, &payload, speaker, outbox);
            }
        }
        // A flood of them costs as much as one of pings.
        Incoming::Pong => {
            speaker.control();
        }
        Incoming::Close(Some(code)) => outbox.close(code, ""),
        Incoming::Close(None) => outbox.close_wordless(),
        Incoming::Broken(1009) => speaker.too_large(outbox),
        Incoming::Broken(1013) => outbox.close(1013, "this node holds as much as it may"),
        Incoming::Broken(code) => outbox.close(code, "the frames break the WebSocket protocol"),
        Incoming::Gone => outbox.abandon(),
    }
}

/// Queues a control frame.
fn send<P: Speaker>(opcode: Opcode, payload: &[u8], speaker: &mut P, outbox: &mut Outbox) {
    if outbox.push(opcode, payload).is_err() {
        speaker.overflow(outbox);
    }
}
