//! What a bucket holds, and what S3 makes of a request.

use std::collections::BTreeMap;
use std::ops::Range;

use driftline_uploads::Digest;

/// The least bytes of every part but the last.
pub const PART_BYTES_MIN: usize = 5 << 20;

/// A multipart upload that is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multipart {
    /// The key of the object that is to become of it.
    pub key: String,
    /// The parts by their numbers.
    pub parts: BTreeMap<u32, Vec<u8>>,
}

/// When objects are written, unless a test says otherwise, in Unix milliseconds.
pub const WRITTEN_MS: u64 = 1_795_334_400_000;

/// How many keys Amazon lists at once.
const PAGE: usize = 1000;

#[derive(Debug)]
pub(super) struct Object {
    pub(super) bytes: Vec<u8>,
    pub(super) written_ms: u64,
}

impl Object {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, written_ms: WRITTEN_MS }
    }
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    Refuse(u16, String),
    HangUp,
    LoseAnswer,
    Stall,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) objects: BTreeMap<String, Object>,
    pub(super) open: BTreeMap<String, Multipart>,
    pub(super) asked: Vec<String>,
    pub(super) faults: usize,
    /// How many keys are listed at once.
    pub(super) page: usize,
    /// What goes wrong with the next requests, and with how many.
    ordered: Option<(usize, Fault)>,
    /// Requests before that with which nothing goes wrong.
    pub(super) spared: usize,
    /// Multipart uploads since the start, for their names.
    created: u64,
    /// The multipart upload that is never aborted.
    pub(super) stubborn: Option<String>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            open: BTreeMap::new(),
            asked: Vec::new(),
            faults: 0,
            page: PAGE,
            ordered: None,
            spared: 0,
            created: 0,
            stubborn: None,
        }
    }
}

/// What is asked of an object.
#[derive(Debug)]
pub(super) enum Ask {
    Create,
    PutPart(String, u32, Vec<u8>),
    Complete(String, Vec<(u32, String)>),
    Abort(String),
    Put(Vec<u8>),
    Get(Option<(u64, u64)>),
    Head,
    Delete,
}

/// Which keys are to be listed.
#[derive(Debug)]
pub(super) struct ListAsk {
    pub(super) prefix: String,
    /// The key behind which the page begins.
    pub(super) after: Option<String>,
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page {
    /// Keys, their bytes, and when they were written.
    pub(super) objects: Vec<(String, usize, u64)>,
    /// The last key of the page, if more come behind it.
    pub(super) more: Option<String>,
}

/// What is answered.
#[derive(Debug)]
pub(super) enum Told {
    Created(String),
    Put(String),
    Completed(String),
    Bytes { bytes: Vec<u8>, part: Option<(Range<usize>, usize)>, tag: String },
    Head(usize, String),
    Gone,
}

/// A status, and S3's code for it.
pub(super) type Refusal = (u16, String);

fn refused<T>(status: u16, code: &str) -> Result<T, Refusal> {
    Err((status, code.to_owned()))
}

/// Makes the tag of bytes: the same bytes have the same.
fn tag(bytes: &[u8]) -> String {
    format!("\"{}\"", &Digest::hash(bytes).to_string()[..32])
}

impl State {
    pub(super) fn order(&mut self, requests: usize, fault: Fault) {
        (self.ordered, self.spared) = (Some((requests, fault)), 0);
    }

    /// Returns what is to go wrong with this request.
    pub(super) fn fault(&mut self) -> Option<Fault> {
        let (left, fault) = self.ordered.as_mut().filter(|(left, _)| *left > 0)?;
        if self.spared > 0 {
            self.spared -= 1;
            return None;
        }
        *left -= 1;
        self.faults += 1;
        Some(fault.clone())
    }

    pub(super) fn answer(&mut self, key: &str, ask: Ask) -> Result<Told, Refusal> {
        match ask {
            Ask::Create => {
                self.created += 1;
                let name = format!("upload-{}.{}_", self.created, key.len());
                self.open.insert(name.clone(), Multipart { key: key.into(), parts: BTreeMap::new() });
                Ok(Told::Created(name))
            }
            Ask::PutPart(name, number, bytes) => {
                let tag = tag(&bytes);
                self.upload(key, &name)?.parts.insert(number, bytes);
                Ok(Told::Put(tag))
            }
            Ask::Complete(name, parts) => {
                let whole = whole(self.upload(key, &name)?, &parts)?;
                let tag = tag(&whole);
                self.open.remove(&name);
                self.objects.insert(key.into(), Object::new(whole));
                Ok(Told::Completed(tag))
            }
            Ask::Abort(name) if self.stubborn.as_deref() == Some(&*name) => refused(403, "AccessDenied"),
            Ask::Abort(name) => {
                self.upload(key, &name)?;
                self.open.remove(&name);
                Ok(Told::Gone)
            }
            Ask::Put(bytes) => {
                let tag = tag(&bytes);
                self.objects.insert(key.into(), Object::new(bytes));
                Ok(Told::Put(tag))
            }
            Ask::Get(range) => read(self.object(key)?, range),
            Ask::Head => self.object(key).map(|bytes| Told::Head(bytes.len(), tag(bytes))),
            Ask::Delete => {
                self.objects.remove(key);
                Ok(Told::Gone)
            }
        }
    }

    /// Lists one page of the keys that begin as they are to.
    pub(super) fn list(&self, ask: &ListAsk) -> Page {
        let begins = |key: &str| key.starts_with(&ask.prefix);
        let follows = |key: &str| ask.after.as_deref().is_none_or(|after| key > after);
        let mut found = self.objects.iter().filter(|(key, _)| begins(key) && follows(key));
        let told = |(key, object): (&String, &Object)| (key.clone(), object.bytes.len(), object.written_ms);
        let objects: Vec<_> = found.by_ref().take(self.page).map(told).collect();
        let last = objects.last().map(|(key, ..)| key.clone());
        Page { more: found.next().and(last), objects }
    }

    fn object(&self, key: &str) -> Result<&Vec<u8>, Refusal> {
        self.objects.get(key).map(|object| &object.bytes).ok_or_else(|| (404, "NoSuchKey".to_owned()))
    }

    fn upload(&mut self, key: &str, name: &str) -> Result<&mut Multipart, Refusal> {
        match self.open.get_mut(name).filter(|upload| upload.key == key) {
            Some(upload) => Ok(upload),
            None => refused(404, "NoSuchUpload"),
        }
    }
}

/// Puts the parts together as they are listed.
fn whole(upload: &Multipart, listed: &[(u32, String)]) -> Result<Vec<u8>, Refusal> {
    if listed.is_empty() {
        return refused(400, "MalformedXML");
    }
    if !listed.is_sorted_by(|one, next| one.0 < next.0) {
        return refused(400, "InvalidPartOrder");
    }
    let mut whole = Vec::new();
    for (at, (number, told)) in listed.iter().enumerate() {
        let part = upload.parts.get(number).filter(|part| tag(part) == *told);
        let Some(part) = part else { return refused(400, "InvalidPart") };
        if at + 1 < listed.len() && part.len() < PART_BYTES_MIN {
            return refused(400, "EntityTooSmall");
        }
        whole.extend_from_slice(part);
    }
    Ok(whole)
}

/// Reads a range, whose last byte counts.
fn read(bytes: &[u8], range: Option<(u64, u64)>) -> Result<Told, Refusal> {
    let tag = tag(bytes);
    let Some((first, last)) = range else { return Ok(Told::Bytes { bytes: bytes.into(), part: None, tag }) };
    let end = bytes.len().min(usize::try_from(last).unwrap_or(usize::MAX).saturating_add(1));
    match usize::try_from(first).ok().filter(|first| *first < end) {
        Some(first) => {
            let part = Some((first..end, bytes.len()));
            Ok(Told::Bytes { bytes: bytes[first..end].into(), part, tag })
        }
        None => refused(416, "InvalidRange"),
    }
}
