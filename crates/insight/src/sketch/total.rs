//! A sum that does not depend on the order.

/// The binary digits behind the point.
const FRACTION_BITS: u32 = 40;

/// The sum of finite values, in units of 2^-40.
///
/// Addition of doubles is not associative, that of integers is; and it stays so where it stops at the largest number,
/// as long as nothing is taken away. Hence one sum of what is above zero and one of what is below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Total {
    pub(super) above: u128,
    pub(super) below: u128,
}

impl Total {
    /// Adds a finite value so many times.
    pub(super) const fn add_many(&mut self, value: f64, count: u64) {
        let units = units(value.abs()).saturating_mul(count as u128);
        let side = if value < 0.0 { &mut self.below } else { &mut self.above };
        *side = side.saturating_add(units);
    }

    pub(super) const fn merge(&mut self, other: &Self) {
        self.above = self.above.saturating_add(other.above);
        self.below = self.below.saturating_add(other.below);
    }

    /// Returns the sum, rounded to a double.
    pub(super) const fn value(&self) -> f64 {
        let unit = 1.0 / (1_u64 << FRACTION_BITS) as f64;
        let distance = self.above.abs_diff(self.below) as f64 * unit;
        if self.above < self.below { -distance } else { distance }
    }
}

/// Returns the nearest number of units, of two the larger one; stops at the largest number.
const fn units(magnitude: f64) -> u128 {
    let bits = magnitude.to_bits();
    let fraction = (bits & ((1 << 52) - 1)) as u128;
    // A normal double is its fraction with a 1 in front, times 2^(exponent - 1075).
    let (significand, exponent) = match bits >> 52 {
        0 => (fraction, 1),
        exponent => (fraction | 1 << 52, exponent),
    };
    let point = 1075 - FRACTION_BITS as u64;
    if exponent >= point {
        let up = exponent - point;
        // 53 bits fit at most 75 times to the left.
        if up > 75 && significand != 0 { u128::MAX } else { significand << up }
    } else {
        let down = point - exponent;
        if down > 54 { 0 } else { (significand + (1 << (down - 1))) >> down }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(values: &[f64]) -> f64 {
        let mut total = Total::default();
        for value in values {
            total.add_many(*value, 1);
        }
        total.value()
    }

    #[test]
    fn sums_are_those_of_arithmetic() {
        for (values, sum) in [
            (&[][..], 0.0),
            (&[0.0, -0.0], 0.0),
            (&[0.5, 0.25, -1.0], -0.25),
            (&[1e15, 1.0, -1e15], 1.0),
            (&[9_007_199_254_740_992.0, 1.0, 1.0], 9_007_199_254_740_994.0),
            (&[1e25, 1e25], 2e25),
            (&[1e-13, 1e-300, 5e-324], 0.0),
            (&[2_f64.powi(-41)], 2_f64.powi(-40)),
            (&[2_f64.powi(-42)], 0.0),
        ] {
            assert_eq!(total(values), sum, "{values:?}");
        }
        let tenths = total(&[0.1; 1_000]);
        assert!((tenths - 100.0).abs() < 1e-9, "{tenths}");
    }

    #[test]
    fn a_sum_stops_at_its_end() {
        let end = 2_f64.powi(88);
        for values in [&[f64::MAX][..], &[end, end], &[2_f64.powi(87), 2_f64.powi(87), 1.0], &[1e27, 1e300]] {
            assert_eq!(total(values), end, "{values:?}");
        }
        assert_eq!(total(&[2_f64.powi(87)]), 2_f64.powi(87));
        let mut total = Total::default();
        total.add_many(-1e20, u64::MAX);
        assert_eq!(total.value(), -end);
    }
}
