//! The codings of bodies: gzip (RFC 1952) and zstd (RFC 8878).

use std::io::{self, Read, Write as _};

use axum::http::{HeaderMap, header};
use driftline_protocol::{ErrorCode, Fault};
use flate2::Compression;
use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;

use crate::budget::Share;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    Gzip,
    Zstd,
}

/// The largest window of a zstd frame, as a power of two: 8 MiB, as RFC 9659 says for HTTP.
const WINDOW_LOG_MAX: u32 = 23;

/// The levels at which answers are compressed: quick ones, for they are written once and read once.
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

/// Bytes that are inflated before the bound is looked at again.
const STEP: usize = 16 << 10;

/// Why a body cannot be inflated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InflateFault {
    /// It would become larger than it may.
    TooLarge,
    /// It is not whole, or not of this coding.
    Broken,
    /// The node holds as much as it may.
    NoRoom,
}

impl Coding {
    /// The codings that are taken, as `Accept-Encoding` names them.
    pub(crate) const NAMES: &'static str = "gzip, zstd";

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// Reads `Content-Encoding`; nothing when the body is as it is.
    ///
    /// # Errors
    /// `UNSUPPORTED_MEDIA_TYPE` for a coding that is not known, and for more than one.
    pub(crate) fn of_headers(headers: &HeaderMap) -> Result<Option<Self>, Fault> {
        let values = headers.get_all(header::CONTENT_ENCODING).iter();
        let values: Vec<&str> = values.map(|value| value.to_str().unwrap_or("?")).collect();
        let named = values.iter().flat_map(|value| value.split(',')).map(str::trim);
        let mut named = named.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("identity"));
        let unsupported = || {
            Fault::new(ErrorCode::UnsupportedMediaType, format!("send at most one coding of {}", Self::NAMES))
        };
        match (named.next(), named.next()) {
            (None, _) => Ok(None),
            (Some(name), None) if is_gzip(name) => Ok(Some(Self::Gzip)),
            (Some(name), None) if name.eq_ignore_ascii_case("zstd") => Ok(Some(Self::Zstd)),
            _ => Err(unsupported()),
        }
    }

    /// Bytes that a compressed body may have: incompressible ones grow a little.
    pub(crate) const fn packed_max(bytes_max: usize) -> usize {
        bytes_max + bytes_max / 16 + 1024
    }

    /// Inflates a whole body. Members and frames that follow each other are one body; the bound holds for all of them
    /// together and is looked at all the while.
    ///
    /// # Errors
    /// [`InflateFault`] says why not.
    pub(crate) fn inflate(
        self,
        packed: &[u8],
        bytes_max: usize,
        share: &mut Share,
    ) -> Result<Vec<u8>, InflateFault> {
        match self {
            Self::Gzip => read_all(MultiGzDecoder::new(packed), bytes_max, share),
            Self::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(packed);
                let mut decoder = decoder.map_err(|_| InflateFault::NoRoom)?;
                decoder.window_log_max(WINDOW_LOG_MAX).map_err(|_| InflateFault::Broken)?;
                read_all(decoder, bytes_max, share)
            }
        }
    }

    /// Compresses a whole body.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub(crate) fn deflate(self, bytes: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL));
                encoder.write_all(bytes)?;
                encoder.finish()
            }
            Self::Zstd => zstd::bulk::compress(bytes, ZSTD_LEVEL),
        }
    }
}

/// `x-gzip` is the same (RFC 9110 §8.4.1.3).
pub(crate) fn is_gzip(name: &str) -> bool {
    name.eq_ignore_ascii_case("gzip") || name.eq_ignore_ascii_case("x-gzip")
}

fn read_all(mut source: impl Read, bytes_max: usize, share: &mut Share) -> Result<Vec<u8>, InflateFault> {
    let mut out = Vec::new();
    let mut step = vec![0; STEP];
    loop {
        let len = source.read(&mut step).map_err(|_| InflateFault::Broken)?;
        if len == 0 {
            return Ok(out);
        }
        if out.len() + len > bytes_max {
            return Err(InflateFault::TooLarge);
        }
        if !share.cover(out.len() + len) {
            return Err(InflateFault::NoRoom);
        }
        out.extend_from_slice(&step[..len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    const BOTH: [Coding; 2] = [Coding::Gzip, Coding::Zstd];

    fn inflate(coding: Coding, packed: &[u8], bytes_max: usize) -> Result<Vec<u8>, InflateFault> {
        coding.inflate(packed, bytes_max, &mut Budget::new(1 << 30).share())
    }

    #[test]
    fn bodies_come_out_as_they_went_in_and_end_at_the_byte() {
        for coding in BOTH {
            for len in [0, 1, STEP, STEP + 1, 300_000] {
                let body: Vec<u8> = b"abcdefg".iter().copied().cycle().take(len).collect();
                let packed = coding.deflate(&body).unwrap();
                assert_eq!(inflate(coding, &packed, len), Ok(body), "{coding:?} {len}");
                if len > 0 {
                    assert_eq!(inflate(coding, &packed, len - 1), Err(InflateFault::TooLarge));
                }
            }
        }
    }

    #[test]
    fn parts_that_follow_each_other_are_one_body() {
        for coding in BOTH {
            let packed = [coding.deflate(b"one ").unwrap(), coding.deflate(b"two").unwrap()].concat();
            assert_eq!(inflate(coding, &packed, 7), Ok(b"one two".to_vec()), "{coding:?}");
            assert_eq!(inflate(coding, &packed, 6), Err(InflateFault::TooLarge), "{coding:?}");
        }
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        for coding in BOTH {
            let good = coding.deflate(&b"body ".repeat(100)).unwrap();
            for end in 1..good.len() {
                assert_eq!(
                    inflate(coding, &good[..end], 1000),
                    Err(InflateFault::Broken),
                    "{coding:?} {end}"
                );
            }
            let longer = [&good[..], b"tail"].concat();
            for bad in [&longer[..], b"{}", b"no coding at all"] {
                assert_eq!(inflate(coding, bad, 1000), Err(InflateFault::Broken), "{coding:?} {bad:?}");
            }
        }
    }

    #[test]
    fn a_window_is_not_made_because_a_frame_claims_it() {
        // A frame without a size whose window descriptor says 2^41 bytes, and one of 2^24.
        for descriptor in [0xf8_u8, 14 << 3] {
            let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, descriptor, 0x01, 0x00, 0x00];
            assert_eq!(inflate(Coding::Zstd, &frame, 1000), Err(InflateFault::Broken), "{descriptor:#x}");
        }
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 13 << 3, 0x01, 0x00, 0x00];
        assert_eq!(inflate(Coding::Zstd, &frame, 1000), Ok(Vec::new()), "8 MiB are allowed");
    }

    #[test]
    fn what_is_inflated_is_taken_from_the_budget() {
        let budget = Budget::new(100_000);
        for coding in BOTH {
            let packed = coding.deflate(&vec![0; 200_000]).unwrap();
            let mut share = budget.share();
            assert!(coding.inflate(&packed, 1 << 20, &mut share) == Err(InflateFault::NoRoom));
            drop(share);
            assert!(budget.share().grow(100_000), "it came back");
        }
    }
}
