//! Bodies of HTTP requests and answers about uploads and files.

use driftline_model::{KindName, Limits, RecordId};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::envelope::{Envelope, Fault, refuse_duplicates};
use crate::form::Encoding;
use crate::json::Node;

/// The body of `POST /api/v1/uploads/init`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadPost {
    /// What the client calls the file.
    pub file_name: String,
    /// What the client says the file is.
    pub content_type: Option<String>,
    /// The file's bytes.
    pub size: u64,
    /// The SHA-256 of the file, in hexadecimal digits.
    pub sha256: Option<String>,
    /// What else the client tells: a JSON object.
    pub metadata: Option<String>,
    /// The record that the file belongs to.
    pub record: Option<(KindName, RecordId)>,
}

/// The most bytes of what a client tells of a file beside its name and type.
const METADATA_BYTES_MAX: usize = 16 << 10;

impl UploadPost {
    /// Reads the body.
    ///
    /// # Errors
    /// As [`crate::decode`].
    pub fn decode(encoding: Encoding, bytes: &[u8], limits: &Limits) -> Result<Self, Fault> {
        let document = Envelope::parse(encoding, bytes, limits)?;
        let root = document.root();
        refuse_duplicates(root, "")?;
        let size = field(root, "size").and_then(|node| node.as_u64());
        let size =
            size.ok_or_else(|| Fault::invalid("/size", "the file's bytes, an integer, are required"))?;
        let file_name = match field(root, "filename") {
            Some(node) => {
                node.as_str().ok_or_else(|| Fault::invalid("/filename", "must be a text"))?.into_owned()
            }
            None => return Err(Fault::invalid("/filename", "a name is required")),
        };
        let metadata = match field(root, "metadata") {
            None => None,
            Some(node) if !node.is_object() => return Err(Fault::invalid("/metadata", "must be an object")),
            Some(node) => Some(node.to_json().into_owned()),
        };
        if metadata.as_ref().is_some_and(|text| text.len() > METADATA_BYTES_MAX) {
            return Err(Fault::invalid("/metadata", "may have 16 KiB"));
        }
        Ok(Self {
            file_name,
            content_type: text(root, "content_type")?,
            size,
            sha256: text(root, "sha256")?,
            metadata,
            record: record(root)?,
        })
    }
}

/// Reads the body of `POST /api/v1/uploads/{upload_id}/finalize`: the SHA-256 of the file in hexadecimal digits, if it is
/// told. An empty body tells nothing.
///
/// # Errors
/// As [`crate::decode`].
pub fn decode_finalize(encoding: Encoding, bytes: &[u8], limits: &Limits) -> Result<Option<String>, Fault> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let document = Envelope::parse(encoding, bytes, limits)?;
    refuse_duplicates(document.root(), "")?;
    text(document.root(), "sha256")
}

fn field<'a>(root: Node<'a>, name: &str) -> Option<Node<'a>> {
    root.get(name).filter(|node| !node.is_null())
}

fn text(root: Node<'_>, name: &str) -> Result<Option<String>, Fault> {
    let Some(node) = field(root, name) else { return Ok(None) };
    let text = node.as_str().ok_or_else(|| Fault::invalid(&format!("/{name}"), "must be a text"))?;
    Ok(Some(text.into_owned()))
}

/// A record is named by its kind, which is also called its data type, and its id.
fn record(root: Node<'_>) -> Result<Option<(KindName, RecordId)>, Fault> {
    let Some(node) = field(root, "record") else { return Ok(None) };
    let kind = field(node, "kind").or_else(|| field(node, "data_type")).and_then(|node| node.as_str());
    let kind = kind.and_then(|text| KindName::new(&text).ok());
    let id = field(node, "id").and_then(|node| node.as_str()).and_then(|text| RecordId::new(&text).ok());
    match (kind, id) {
        (Some(kind), Some(id)) => Ok(Some((kind, id))),
        _ => Err(Fault::invalid("/record", "the kind and the id of a record are required")),
    }
}

/// What is told of an upload that was opened.
#[derive(Debug, Clone, Serialize)]
pub struct UploadDoc {
    /// The upload.
    pub upload_id: String,
    /// The bytes of every chunk but the last.
    pub chunk_size: u64,
    /// The chunks.
    pub total_chunks: u64,
    /// When it goes, RFC 3339.
    pub expires_at: String,
    /// What lets whoever has it go on with this upload, and do nothing else.
    pub upload_token: String,
}

/// What is told of a chunk that was received.
#[derive(Debug, Clone, Serialize)]
pub struct ChunkDoc {
    /// The chunk.
    pub index: u64,
    /// How many chunks were received.
    pub received: u64,
    /// How many there are.
    pub total_chunks: u64,
}

/// Where an upload stands.
#[derive(Debug, Clone, Serialize)]
pub struct UploadStatusDoc {
    /// The upload.
    pub upload_id: String,
    /// `open`, `finalizing`, `done`, `cancelled` or `expired`.
    pub state: String,
    /// How many chunks were received.
    pub received: u64,
    /// The chunks that are missing: the first and the last one of each gap.
    pub missing: Vec<[u64; 2]>,
    /// How many bytes were received.
    pub bytes_received: u64,
    /// The file's bytes; null while nobody has told.
    pub size: Option<u64>,
    /// The bytes of every chunk but the last; null for an upload that comes as a stream.
    pub chunk_size: Option<u64>,
    /// The chunks.
    pub total_chunks: u64,
    /// When it goes, RFC 3339.
    pub expires_at: String,
    /// Why it could not be finalized the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The file, once it is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileDoc>,
}

/// What is told of a file.
#[derive(Debug, Clone, Serialize)]
pub struct FileDoc {
    /// The file.
    pub file_id: String,
    /// Its bytes.
    pub size: u64,
    /// Its SHA-256, in hexadecimal digits.
    pub sha256: String,
    /// Where its bytes are to be had.
    pub url: String,
    /// What it is called.
    pub filename: String,
    /// What it is said to be.
    pub content_type: String,
    /// What its first bytes look like, where that is something else than it is said to be: advice, no verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detected_type: Option<String>,
    /// What else the client told: an object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Box<RawValue>>,
    /// The record that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<RecordRefDoc>,
}

/// Names a record.
#[derive(Debug, Clone, Serialize)]
pub struct RecordRefDoc {
    /// Its kind.
    pub kind: String,
    /// Its id.
    pub id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<UploadPost, Fault> {
        UploadPost::decode(Encoding::Json, text.as_bytes(), &Limits::default())
    }

    #[test]
    fn what_a_client_wants_to_upload_is_read() {
        let post = read(
            r#"{"filename":"a.png","size":7,"metadata":{"b":1},"record":{"data_type":"ticket","id":"t1"}}"#,
        );
        let post = post.expect("an upload");
        assert_eq!(
            (post.file_name.as_str(), post.size, post.metadata.as_deref()),
            ("a.png", 7, Some("{\"b\":1}"))
        );
        assert_eq!(post.record.map(|(kind, id)| format!("{kind} {id}")).as_deref(), Some("ticket t1"));
        assert_eq!(post.content_type, None);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let table = [
            (r#"{"filename":"a"}"#, "/size"),
            (r#"{"filename":"a","size":1,"size":2}"#, "/size"),
            (r#"{"filename":"a","size":-1}"#, "/size"),
            (r#"{"filename":"a","size":1.5}"#, "/size"),
            (r#"{"size":1}"#, "/filename"),
            (r#"{"filename":7,"size":1}"#, "/filename"),
            (r#"{"filename":"a","size":1,"metadata":[]}"#, "/metadata"),
            (r#"{"filename":"a","size":1,"sha256":1}"#, "/sha256"),
            (r#"{"filename":"a","size":1,"record":{"kind":"x"}}"#, "/record"),
        ];
        for (text, pointer) in table {
            assert_eq!(read(text).expect_err(text).errors[0].pointer, pointer);
        }
    }
}
