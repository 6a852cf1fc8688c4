//! Whole runs against a small server of the plain dialect, which can be told to lose, double and swap deliveries.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use clap::Parser;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::{Options, run};
use crate::load::frame::write_server_head;

/// What the server does wrong with its third event for its first subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Lost,
    Doubled,
    Swapped,
}

/// The subscribers of the one topic, and the events published so far.
#[derive(Default)]
struct Topic {
    subscribers: Vec<UnboundedSender<Vec<u8>>>,
    events: usize,
    held: Option<Vec<u8>>,
}

impl Topic {
    fn publish(&mut self, body: &str, fault: Fault) {
        self.events += 1;
        let mut frame = Vec::new();
        let text = format!(r#"{{"type":"event","payload":{{"body":{body}}}}}"#);
        write_server_head(text.len(), &mut frame);
        frame.extend_from_slice(text.as_bytes());
        for (index, subscriber) in self.subscribers.iter().enumerate() {
            let fault = if index == 0 && self.events == 3 { fault } else { Fault::None };
            // A subscriber may be gone.
            let send = |frame: &Vec<u8>| drop(subscriber.send(frame.clone()));
            match fault {
                Fault::None => send(&frame),
                Fault::Lost => {}
                Fault::Doubled => {
                    send(&frame);
                    send(&frame);
                }
                Fault::Swapped => self.held = Some(frame.clone()),
            }
            if index == 0 && self.events == 4 {
                self.held.take().iter().for_each(send);
            }
        }
    }
}

async fn serve(mut stream: TcpStream, topic: Arc<Mutex<Topic>>, fault: Fault) -> Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await?;
    let (mut read, mut write) = stream.into_split();
    let (sender, mut frames) = unbounded_channel::<Vec<u8>>();
    tokio::spawn(async move {
        while let Some(frame) = frames.recv().await {
            write.write_all(&frame).await?;
        }
        Ok::<_, anyhow::Error>(())
    });
    loop {
        let _text = read.read_u8().await?;
        let length = match read.read_u8().await? & 0x7F {
            126 => usize::from(read.read_u16().await?),
            short => usize::from(short),
        };
        let mut bytes = vec![0; 4 + length];
        read.read_exact(&mut bytes).await?;
        let (mask, payload) = bytes.split_at(4);
        let plain: Vec<u8> = payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key).collect();
        let message: serde_json::Value = serde_json::from_slice(&plain)?;
        let mut topic = topic.lock().expect("no test holds it");
        if message["type"] == "subscribe" {
            topic.subscribers.push(sender.clone());
            let ack = br#"{"type":"ack"}"#;
            let mut frame = Vec::new();
            write_server_head(ack.len(), &mut frame);
            frame.extend_from_slice(ack);
            sender.send(frame)?;
        } else {
            topic.publish(&message["payload"]["body"].to_string(), fault);
        }
    }
}

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

/// Runs the command against such a server.
fn ran(fault: Fault, more: &[&str]) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("ws://{}", listener.local_addr()?);
        let topic = Arc::new(Mutex::new(Topic::default()));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&topic), fault));
            }
        });
        let line = ["fanout", "--dialect", "plain", "--url", &url, "--seconds", "0.2", "--subscribers", "3"];
        run(&Line::try_parse_from(line.iter().chain(more))?.options).await
    })
}

#[test]
fn a_server_that_delivers_everything_in_order_passes() {
    ran(Fault::None, &["--publishers", "3", "--outstanding", "2"]).expect("closed loop");
    ran(Fault::None, &["--rate", "20", "--bytes", "100"]).expect("open loop");
}

#[test]
fn lost_doubled_and_swapped_deliveries_are_found() {
    for (fault, code) in [(Fault::Lost, "gap"), (Fault::Doubled, "disorder"), (Fault::Swapped, "disorder")] {
        let found = ran(fault, &["--publishers", "1"]).expect_err("found").to_string();
        assert!(found.contains(code), "{fault:?}: {found}");
    }
}
