//! The bytes of a sketch: one form for each, and no other is read.
//!
//! ```text
//! version = 1 | number of buckets | of each bucket: step of its key, count
//!             | minimum | maximum | sum above zero | sum below zero
//! ```
//!
//! Without buckets it ends there. The extremes are doubles, little-endian. All other numbers are LEB128 in their
//! shortest form. The first key is zigzag-coded, each further step is the distance from the key before.

use super::bucket::{self, KEY_MAX, Key};
use super::total::Total;
use super::{Bucket, Sketch, SketchError};

const VERSION: u8 = 1;

impl Sketch {
    /// Writes the sketch; equal sketches give equal bytes, on every machine.
    ///
    /// A bucket takes two bytes or more, so that a sketch takes up to some 20 KiB, and a few hundred bytes if its
    /// values are of one kind.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + 3 * self.buckets.len());
        out.push(VERSION);
        write(&mut out, self.buckets.len() as u128);
        let Some((min, max)) = self.range else { return out };
        let mut before = None;
        for bucket in &self.buckets {
            let step = before.map_or_else(|| zigzag(bucket.key), |key| bucket.key.abs_diff(key));
            write(&mut out, u128::from(step));
            write(&mut out, u128::from(bucket.count));
            before = Some(bucket.key);
        }
        out.extend_from_slice(&min.to_le_bytes());
        out.extend_from_slice(&max.to_le_bytes());
        write(&mut out, self.total.above);
        write(&mut out, self.total.below);
        out
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    ///
    /// [`SketchError::Version`] for bytes of another version, and [`SketchError::Malformed`] for all that no sketch
    /// gives: what is accepted is written again as the same bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SketchError> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => read_sketch(rest).ok_or(SketchError::Malformed),
            Some((&version, _)) => Err(SketchError::Version(version)),
            None => Err(SketchError::Malformed),
        }
    }
}

fn read_sketch(mut rest: &[u8]) -> Option<Sketch> {
    let rest = &mut rest;
    let buckets = usize::try_from(read(rest)?).ok().filter(|count| *count <= Sketch::BUCKETS_MAX)?;
    let mut sketch = Sketch::new();
    if buckets > 0 {
        // A bucket takes two bytes at least: a short message reserves little.
        sketch.buckets.reserve_exact(buckets.min(rest.len() / 2));
        for _ in 0..buckets {
            let key = read_key(rest, sketch.buckets.last().map(|bucket| bucket.key))?;
            let count = u64::try_from(read(rest)?).ok().filter(|count| *count > 0)?;
            sketch.buckets.push(Bucket { key, count });
            sketch.count = sketch.count.saturating_add(count);
        }
        sketch.range = Some((read_double(rest)?, read_double(rest)?));
        sketch.total = Total { above: read(rest)?, below: read(rest)? };
    }
    (rest.is_empty() && extremes_fit(&sketch)).then_some(sketch)
}

/// Tells whether minimum, maximum and sum can be those of the buckets.
fn extremes_fit(sketch: &Sketch) -> bool {
    let (Some((min, max)), [lowest, .., highest] | [lowest @ highest]) = (sketch.range, &sketch.buckets[..])
    else {
        return true;
    };
    // The minimum lies below the lowest bucket only where buckets were collapsed into it.
    let full = sketch.buckets.len() == Sketch::BUCKETS_MAX;
    let low = bucket::key(min) == lowest.key || full && bucket::key(min) < lowest.key;
    let signs = (max > 0.0 || sketch.total.above == 0) && (min < 0.0 || sketch.total.below == 0);
    low && bucket::key(max) == highest.key && min <= max && signs
}

fn read_key(rest: &mut &[u8], before: Option<Key>) -> Option<Key> {
    let step = u32::try_from(read(rest)?).ok()?;
    let key = match before {
        None => unzigzag(step),
        Some(_) if step == 0 => return None,
        Some(key) => key.checked_add_unsigned(step)?,
    };
    // A key is 0 or that of a normal double.
    (key == bucket::key(bucket::middle(key.clamp(-KEY_MAX, KEY_MAX)))).then_some(key)
}

/// Reads a double that is a value: finite, and no negative zero.
fn read_double(rest: &mut &[u8]) -> Option<f64> {
    let (bytes, after) = rest.split_first_chunk()?;
    *rest = after;
    let value = f64::from_le_bytes(*bytes);
    (value.is_finite() && (value != 0.0 || value.is_sign_positive())).then_some(value)
}

fn write(out: &mut Vec<u8>, mut number: u128) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            out.push(low & 0x7f);
            return;
        }
        out.push(low | 0x80);
    }
}

fn read(rest: &mut &[u8]) -> Option<u128> {
    let mut number = 0_u128;
    for shift in (0..128).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        let bits = u128::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            // A last byte of zero would be a longer form of the same number.
            return (bits != 0 || shift == 0).then_some(number);
        }
    }
    None
}

const fn zigzag(key: Key) -> u32 {
    ((key << 1) ^ (key >> 31)).cast_unsigned()
}

const fn unzigzag(coded: u32) -> Key {
    (coded >> 1).cast_signed() ^ -((coded & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sketch(values: &[f64]) -> Sketch {
        let mut sketch = Sketch::new();
        for value in values {
            sketch.add(*value).expect("finite");
        }
        sketch
    }

    #[test]
    fn the_bytes_are_these() {
        assert_eq!(Sketch::new().to_bytes(), [1, 0]);
        // 1.0 is in bucket 65472 and 2.0 in the one 64 further; the sum is 4 * 2^40.
        let bytes = sketch(&[2.0, 1.0, 1.0]).to_bytes();
        let mut wanted = vec![1, 2, 0x80, 0xff, 0x07, 2, 64, 1];
        wanted.extend(1.0_f64.to_le_bytes());
        wanted.extend(2.0_f64.to_le_bytes());
        wanted.extend([0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 0]);
        assert_eq!(bytes, wanted);
    }

    #[test]
    fn what_no_sketch_gives_is_refused() {
        let good = sketch(&[2.0, 1.0, 1.0]).to_bytes();
        assert_eq!(Sketch::from_bytes(&good), Ok(sketch(&[1.0, 2.0, 1.0])));
        let mut longer = good.clone();
        longer.push(0);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        for (bytes, why) in [
            (Vec::new(), "nothing"),
            (longer, "something behind the end"),
            (good[..good.len() - 1].to_vec(), "cut off"),
            (vec![1, 0x80, 0], "a number in a longer form"),
            (with(1, 1), "fewer buckets than there are"),
            (with(5, 0), "an empty bucket"),
            (with(6, 0), "the same bucket twice"),
            (with(6, 63), "a maximum in no bucket"),
            (with(15, 0xbf), "a minimum below all buckets"),
            (with(good.len() - 1, 1), "a sum of negative values without any"),
            (vec![1, 0x81, 0x10], "too many buckets"),
        ] {
            assert_eq!(Sketch::from_bytes(&bytes), Err(SketchError::Malformed), "{why}");
        }
        assert_eq!(Sketch::from_bytes(&with(0, 2)), Err(SketchError::Version(2)));
    }

    #[test]
    fn numbers_round_trip() {
        for number in [0, 1, 127, 128, u128::from(u64::MAX), u128::MAX - 1, u128::MAX] {
            let mut bytes = Vec::new();
            write(&mut bytes, number);
            let mut rest = &bytes[..];
            assert_eq!((read(&mut rest), rest.len()), (Some(number), 0));
        }
        for key in [0, 1, -1, 2, KEY_MAX, -KEY_MAX] {
            assert_eq!(unzigzag(zigzag(key)), key);
        }
        assert_eq!(read(&mut &[0xff; 19][..]), None);
    }
}
