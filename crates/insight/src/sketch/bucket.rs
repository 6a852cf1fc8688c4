//! Where the buckets of a sketch lie.
//!
//! A bucket is an octave's 64th part: the sign, the exponent and the six leading bits of the fraction of a double. Its
//! number is read off the bits, so that no logarithm is taken whose last digit depends on the machine. In the terms of
//! Masson et al. it is the mapping that interpolates the logarithm linearly between powers of two.

/// The bits of the fraction that tell buckets apart.
const PART_BITS: u32 = 6;

/// The bits of the fraction within a bucket.
const WITHIN_BITS: u32 = 52 - PART_BITS;

/// The number of a bucket: in the order of the values, 0 for zero, `-n` for the mirror of `n`.
pub(super) type Key = i32;

/// The largest number of a bucket: the one of [`f64::MAX`].
pub(super) const KEY_MAX: Key = key(f64::MAX);

/// Returns the bucket of a finite value.
///
/// What is nearer to zero than the smallest normal double (2.2e-308) counts as zero: there the bits no longer tell
/// relative distances.
pub(super) const fn key(value: f64) -> Key {
    let magnitude = value.abs();
    if magnitude < f64::MIN_POSITIVE {
        return 0;
    }
    // 17 bits are left of a positive double, and the smallest normal one has a 1 in front of its part.
    let [_, _, _, _, low @ ..] = (magnitude.to_bits() >> WITHIN_BITS).to_be_bytes();
    let key = i32::from_be_bytes(low);
    if value < 0.0 { -key } else { key }
}

/// Returns the middle of a bucket, which lies in it and is at most 1/128 of its distance from zero away from any of its
/// values.
pub(super) const fn middle(key: Key) -> f64 {
    if key == 0 {
        return 0.0;
    }
    let half = 1 << (WITHIN_BITS - 1);
    let middle = f64::from_bits(((key.unsigned_abs() as u64) << WITHIN_BITS) | half);
    if key < 0 { -middle } else { middle }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_lies_in_its_bucket() {
        for number in key(f64::MIN_POSITIVE)..=KEY_MAX {
            assert_eq!(key(middle(number)), number);
            assert_eq!(key(middle(-number)), -number);
        }
        assert_eq!(key(middle(0)), 0);
    }

    #[test]
    fn no_value_is_far_from_the_middle() {
        for number in key(f64::MIN_POSITIVE)..=KEY_MAX {
            let first = f64::from_bits(u64::from(number.unsigned_abs()) << WITHIN_BITS);
            let last = f64::from_bits(first.to_bits() + (1 << WITHIN_BITS) - 1);
            for value in [first, last] {
                assert_eq!(key(value), number);
                assert!((middle(number) - value).abs() / value <= 1.0 / 128.0, "{value}");
            }
        }
    }

    #[test]
    fn what_is_nearly_zero_is_zero() {
        for value in [0.0, -0.0, 5e-324, -5e-324, f64::MIN_POSITIVE.next_down()] {
            assert_eq!(key(value), 0, "{value}");
        }
        assert!(key(f64::MIN_POSITIVE) > 0);
        assert!(key(-f64::MIN_POSITIVE) < 0);
    }
}
