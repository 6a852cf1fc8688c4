//! The secret of an upload, with which its bytes may come after the token of its user has expired.

use driftline_idempotency::Fingerprint;
use driftline_uploads::UploadId;

/// Makes and checks secrets of uploads. Every node on the same database makes the same ones, and none is kept.
pub(crate) struct UploadSecret([u8; 32]);

/// The bytes of a secret.
const SECRET_BYTES: usize = 16;

impl UploadSecret {
    /// Derives the key from the secret of a store.
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        let mut builder = Fingerprint::builder("upload secrets");
        builder.bytes(secret);
        Self(*builder.finish().as_bytes())
    }

    fn bytes(&self, id: UploadId) -> [u8; SECRET_BYTES] {
        let mut builder = Fingerprint::builder("upload secret");
        builder.bytes(&self.0).bytes(id.as_bytes());
        let mut secret = [0; SECRET_BYTES];
        secret.copy_from_slice(&builder.finish().as_bytes()[..SECRET_BYTES]);
        secret
    }

    /// Returns the secret of an upload: 32 hexadecimal digits.
    pub(crate) fn of(&self, id: UploadId) -> String {
        UploadId::of(self.bytes(id)).to_string()
    }

    /// Tells whether a text is the secret of an upload, in a time that does not depend on where it differs.
    pub(crate) fn is(&self, id: UploadId, text: &str) -> bool {
        let Ok(told) = text.parse::<UploadId>() else { return false };
        let pairs = told.as_bytes().iter().zip(self.bytes(id));
        pairs.fold(0, |differs, (told, own)| differs | (told ^ own)) == 0
    }

    /// Returns the last part of the path of an upload over tus: its name and its secret.
    pub(crate) fn segment(&self, id: UploadId) -> String {
        format!("{id}{}", self.of(id))
    }

    /// Reads the last part of the path of an upload over tus.
    pub(crate) fn open(&self, segment: &str) -> Option<UploadId> {
        let (id, secret) = segment.split_at_checked(2 * SECRET_BYTES)?;
        let id = id.parse().ok()?;
        self.is(id, secret).then_some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_secret_opens_an_upload() {
        let (secrets, others) = (UploadSecret::new(&[7; 32]), UploadSecret::new(&[8; 32]));
        let (id, other) = (UploadId::of([1; 16]), UploadId::of([2; 16]));
        let segment = secrets.segment(id);
        assert_eq!(secrets.open(&segment), Some(id));
        assert!(secrets.is(id, &secrets.of(id)) && !secrets.is(other, &secrets.of(id)));
        let longer = format!("{segment}0");
        let swapped = format!("{other}{}", secrets.of(id));
        for bad in ["", "..", &segment[..63], &longer, &swapped, &others.segment(id), &"é".repeat(32)] {
            assert_eq!(secrets.open(bad), None, "{bad}");
        }
    }
}
