//! Random histories of uploads, in chunks and as streams, beside a model that knows a file and which of its bytes came.
//!
//! A failure names its seed: `MODEL_SEED=<seed>` plays that history alone; `MODEL_HISTORIES` says how many are played.
#![allow(clippy::unwrap_used, reason = "what cannot go on fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

use driftline_uploads::{
    Bytes, Digest, Durability, Expiry, Form, Plan, Refused, Shell, State, hash_rest, rehash,
};

mod plain;
mod service;
#[path = "../support/mod.rs"]
mod support;

use plain::{LAST_MS, Model};
use service::{Append, Chunk, ID, Service, Told};
use support::rng::Rng;

/// One history: everything that the crate says is compared with the model.
struct History {
    rng: Rng,
    service: Service,
    model: Model,
    now_ms: u64,
    /// What clients were told, without numbers.
    seen: BTreeSet<String>,
    /// Where a failure happened.
    place: String,
}

impl History {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let now_ms = *rng.pick(&[0, 1_000, LAST_MS - 10, LAST_MS + 1]);
        let whole_ms = *rng.pick(&[30, 300, u64::MAX]);
        let expiry = match rng.percent(70) {
            true => Expiry::Sliding { idle_ms: *rng.pick(&[1, 20, 100, u64::MAX]), whole_ms },
            false => Expiry::Fixed { whole_ms },
        };
        // Files of several blocks of the hash, in pieces that end everywhere.
        let most = *rng.pick(&[0, 8, 60, 400]);
        let size = rng.between(0, most);
        let chunk = rng.percent(60).then(|| rng.between(1, size.div_ceil(2) + 3));
        let size = Some(size).filter(|_| chunk.is_some() || rng.percent(50));
        let form = match chunk {
            Some(chunk) => {
                let chunk = NonZeroU64::new(chunk as u64).unwrap();
                Form::Chunks(Plan::choose(size.unwrap() as u64, chunk))
            }
            None => Form::Stream { size: size.map(|size| size as u64) },
        };
        Self {
            rng,
            service: Service::open(form, expiry, now_ms),
            model: Model {
                expiry,
                state: State::Open,
                opened_ms: now_ms,
                last_ms: now_ms,
                chunk,
                size,
                kept: BTreeMap::new(),
                hashed: 0,
            },
            now_ms,
            seen: BTreeSet::new(),
            place: String::new(),
        }
    }

    fn play(mut self, seed: u64) -> BTreeSet<String> {
        for step in 0..self.rng.between(5, 60) {
            self.wait();
            self.place = format!("seed {seed}, step {step} at {}", self.now_ms);
            match self.rng.below(20) {
                0..=13 if self.model.chunk.is_some() => self.chunk(),
                0..=13 => self.append(),
                14 => self.settle_size(),
                15 => self.turn(),
                16 => self.other_form(),
                _ => self.finish(),
            }
            self.compare();
        }
        self.seen
    }

    /// Time mostly stands still, else goes to one of the edges.
    fn wait(&mut self) {
        let ends_ms = self.model.ends_ms();
        let then_ms = match self.rng.below(100) {
            0..=3 => ends_ms,
            4..=19 => ends_ms.saturating_sub(1),
            20..=39 => self.now_ms + 1,
            _ => self.now_ms,
        };
        self.now_ms = self.now_ms.max(then_ms);
    }

    /// Bytes that a client sends in the place of so many right ones.
    fn bytes(&mut self, from: usize, len: usize) -> Vec<u8> {
        let changed = if self.rng.percent(20) { 0xff } else { 0 };
        let len = match self.rng.below(10) {
            0 => self.rng.between(0, len),
            1 => len + self.rng.between(1, 3),
            _ => len,
        };
        (from..from + len).map(|at| u8::try_from(at % 251).unwrap() ^ changed).collect()
    }

    fn cut<'a>(&mut self, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() && self.rng.percent(70) {
            let (piece, rest) = bytes.split_at(self.rng.between(0, bytes.len()));
            pieces.push(piece);
            bytes = rest;
        }
        pieces.push(bytes);
        pieces
    }

    /// What a client says of a length: nothing, the truth or something else.
    fn told_bytes(&mut self, bytes: usize) -> Option<u64> {
        match self.rng.below(10) {
            0..=3 => None,
            4 => Some(self.rng.below(bytes + 3) as u64),
            _ => Some(bytes as u64),
        }
    }

    fn chunk(&mut self) {
        let chunks = self.model.chunks();
        let index = self.rng.below(chunks.len() + 1);
        let from = chunks[..index].iter().sum();
        let bytes = self.bytes(from, chunks.get(index).copied().unwrap_or(1));
        let announced = if self.rng.percent(90) { Digest::hash(&bytes) } else { Digest::of([7; 32]) };
        // A cut is not announced: the length that is told is that of the whole chunk.
        let told_bytes = self.told_bytes(chunks.get(index).copied().unwrap_or(1));
        let pieces = self.cut(&bytes);
        let chunk = Chunk { index: index as u64, told_bytes, pieces: &pieces, announced };
        let wanted = self.model.chunk(&chunk, self.now_ms).unwrap_or_else(Told::from);
        let told = self.service.chunk(&chunk, self.now_ms).unwrap_or_else(Told::from);
        self.note(told, wanted);
    }

    fn append(&mut self) {
        let received = self.model.received();
        let offset = if self.rng.percent(90) { received } else { self.rng.below(received + 3) };
        let left = self.model.size.map_or(40, |size| size.saturating_sub(offset).min(100));
        let len = self.rng.between(0, left);
        let bytes = self.bytes(offset, len);
        let told_bytes = self.told_bytes(len);
        let pieces = self.cut(&bytes);
        let append = Append { offset: offset as u64, told_bytes, pieces: &pieces };
        let wanted = self.model.append(&append, self.now_ms).unwrap_or_else(Told::from);
        let told = self.service.append(&append, self.now_ms).unwrap_or_else(Told::from);
        self.note(told, wanted);
    }

    /// A chunk for a stream, and a part of a stream for a chunk.
    fn other_form(&mut self) {
        let told = match self.model.chunk {
            Some(_) => self.service.upload.admit_append(0, None, self.now_ms).map(drop),
            None => self.service.upload.admit_chunk(0, None, self.now_ms).map(drop),
        };
        assert_eq!(told, Err(Refused::OtherForm), "{}", self.place);
    }

    fn settle_size(&mut self) {
        let around = self.model.size.unwrap_or(self.model.received());
        let told = if self.rng.percent(70) { around } else { self.rng.below(around + 3) };
        let wanted = self.model.settle_size(told).map_or_else(Told::from, |()| Told::Kept);
        let settled = self.service.upload.settle_size(told as u64);
        self.note(settled.map_or_else(Told::from, |()| Told::Kept), wanted);
    }

    /// It is given up, begun anew or swept away; what may become a file goes another way.
    fn turn(&mut self) {
        let next = *self.rng.pick(&[State::Open, State::Cancelled, State::Expired]);
        let wanted = self.model.turn(next);
        assert_eq!(self.service.upload.turn(next), wanted, "{}: {next:?}", self.place);
    }

    fn finish(&mut self) {
        let begun = self.service.upload.begin(self.now_ms);
        let wanted = self.model.begin(self.now_ms).map_or_else(Told::from, |()| Told::Kept);
        self.note(begun.map_or_else(Told::from, |()| Told::Kept), wanted);
        // Who began may have died, and another one goes on.
        if self.model.state != State::Finalizing || self.rng.percent(40) {
            return;
        }
        let (shell, file) = (&self.service.shell, self.model.beginning());
        let staged = shell.stage(&ID).unwrap();
        let whole = hash_rest(&staged, self.service.running(), file.len() as u64);
        assert_eq!(whole, Ok(Digest::hash(&file)), "{}", self.place);
        if let Form::Chunks(plan) = self.service.upload.form {
            let digests = self.service.digests.iter().map(|(index, digest)| (*index, *digest));
            assert_eq!(rehash(&staged, &plan, digests), Ok(vec![]), "{}", self.place);
        }
        shell.publish(&ID, Durability::Fsync).unwrap();
        let mut read = vec![0; file.len() + 1];
        let len = shell.file(&ID).unwrap().read_at(0, &mut read).unwrap();
        assert!(read[..len] == file, "{}: another file", self.place);
        assert!(self.model.turn(State::Done) && self.service.upload.turn(State::Done), "{}", self.place);
        self.seen.insert("Done".into());
    }

    fn note(&mut self, told: Told, wanted: Told) {
        assert_eq!(told, wanted, "{}: {:?}", self.place, self.service.upload);
        let told = format!("{told:?}");
        self.seen.insert(told.split(" {").next().unwrap_or_default().into());
    }

    fn compare(&self) {
        let (service, model, place) = (&self.service, &self.model, &self.place);
        let upload = &service.upload;
        assert_eq!(upload.state_at(self.now_ms), model.state(self.now_ms), "{place}");
        assert_eq!(upload.received, model.received() as u64, "{place}");
        assert_eq!(upload.expires_ms, model.ends_ms(), "{place}");
        assert_eq!(upload.is_whole(), model.is_whole(), "{place}");
        assert_eq!(upload.form.size(), model.size.map(|size| size as u64), "{place}");
        if model.chunk.is_some() {
            let chunks = model.chunks().len() as u64;
            let mut gaps = model.missing();
            assert_eq!(service.there.missing(chunks, usize::MAX), gaps, "{place}");
            gaps.truncate(2);
            assert_eq!(service.there.missing(chunks, 2), gaps, "{place}");
            assert_eq!(service.there.count(), model.kept.len() as u64, "{place}");
        }
        let (running, hashed) = (service.running(), model.hashed);
        assert_eq!(running.through(), hashed as u64, "{place}");
        assert_eq!(running.digest(), Digest::hash(&model.beginning()[..hashed]), "{place}");
    }
}

/// Everything that clients can be told; a history in which something never happens shows nothing of it.
const ALL: [&str; 18] = [
    "Cut",
    "Damaged",
    "Done",
    "Kept",
    "Met(Other)",
    "Met(Same)",
    "Refused(Finalizing)",
    "Refused(Gone(Cancelled))",
    "Refused(Gone(Done))",
    "Refused(Gone(Expired))",
    "Refused(Incomplete)",
    "Refused(NoSuchChunk",
    "Refused(OtherForm)",
    "Refused(SizeSettled)",
    "Refused(TooLong",
    "Refused(WrongLength",
    "Refused(WrongOffset",
    "TooLong",
];

fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn random_histories_agree_with_a_model() {
    if let Some(seed) = asked("MODEL_SEED") {
        History::new(seed).play(seed);
        return;
    }
    let histories = asked("MODEL_HISTORIES").unwrap_or(5_000);
    let seen: BTreeSet<String> = (0..histories).flat_map(|seed| History::new(seed).play(seed)).collect();
    assert!(histories < 1_000 || seen.iter().map(String::as_str).eq(ALL), "met: {seen:?}");
}
