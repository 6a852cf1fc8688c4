//! How unusual a value is.

use crate::severity::{ConfigError, Severity};

/// Beyond this a square would leave the range of doubles.
const MAGNITUDE_MAX: f64 = 1e150;

/// How an [`Ewma`] learns and when it speaks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EwmaConfig {
    /// The weight of a new value, above 0 and at most 1; about `2 / alpha` values are remembered.
    pub alpha: f64,
    /// How many values are learnt before anything is told; the first one always is.
    pub warm_up: u32,
    /// From how many deviations on a value is a warning.
    pub warning_z: f64,
    /// From how many deviations on a value is critical.
    pub critical_z: f64,
    /// Below how many deviations values are usual again (hysteresis); below `warning_z`.
    pub calm_z: f64,
    /// The least deviation that is reckoned with, in the unit of the values, so that a stream that was constant may
    /// begin to tremble.
    pub deviation_min: f64,
    /// The least deviation that is reckoned with, as a share of the expected value.
    pub deviation_share_min: f64,
    /// How many values after an alarm none is told, but one that is worse (cool-down).
    pub cool_down: u32,
}

impl Default for EwmaConfig {
    /// Remembers some forty values, warns at 3 deviations, and is critical at 4.5.
    fn default() -> Self {
        Self {
            alpha: 0.05,
            warm_up: 30,
            warning_z: 3.0,
            critical_z: 4.5,
            calm_z: 2.0,
            deviation_min: 1e-9,
            deviation_share_min: 0.05,
            cool_down: 60,
        }
    }
}

impl EwmaConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let in_range = |number: f64, least: f64| number.is_finite() && number >= least;
        for (name, holds) in [
            ("alpha", self.alpha > 0.0 && self.alpha <= 1.0),
            ("warning_z", in_range(self.warning_z, f64::MIN_POSITIVE)),
            ("calm_z", in_range(self.calm_z, 0.0) && self.calm_z < self.warning_z),
            ("deviation_min", in_range(self.deviation_min, f64::MIN_POSITIVE)),
            ("deviation_share_min", in_range(self.deviation_share_min, 0.0)),
        ] {
            if !holds {
                return Err(ConfigError::Range(name));
            }
        }
        if in_range(self.critical_z, self.warning_z) { Ok(()) } else { Err(ConfigError::Order) }
    }
}

/// A value that is unusual.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Anomaly {
    /// The value.
    pub value: f64,
    /// What was expected: the mean before it.
    pub expected: f64,
    /// How many deviations it is away; negative below the mean.
    pub z: f64,
    /// How bad that is.
    pub severity: Severity,
}

/// The exponentially weighted mean and deviation of a stream of values; tells which values are unusual.
///
/// The mean and the variance are those of T. Finch, *Incremental calculation of weighted mean and variance* (2009). Two
/// things are added. While there are few values all weigh the same, so that the first one is not taken for the mean.
/// And a value beyond `critical_z` is learnt as if it were exactly there: one wild value does not hide the next one,
/// while a new level is learnt within some dozens of values.
///
/// An alarm begins with the first value from `warning_z` on, is told again when it gets critical, and ends in silence
/// when a value is below `calm_z`. After it was told, nothing that is not worse is told for `cool_down` values; an alarm
/// that begins meanwhile and lasts longer is told then.
#[derive(Debug, Clone, PartialEq)]
pub struct Ewma {
    config: EwmaConfig,
    seen: u64,
    mean: f64,
    variance: f64,
    /// The severity that holds.
    severity: Option<Severity>,
    /// What was told of the alarm that holds.
    told: Option<Severity>,
    /// What was told last of any alarm, and how many more values it silences.
    last_told: Option<Severity>,
    silent: u32,
}

impl Ewma {
    /// Makes one that has seen nothing.
    ///
    /// # Errors
    ///
    /// A setting that is not a number or out of its range, or a `critical_z` below `warning_z`.
    pub fn new(config: EwmaConfig) -> Result<Self, ConfigError> {
        config.check()?;
        let (severity, told, last_told) = (None, None, None);
        Ok(Self { config, seen: 0, mean: 0.0, variance: 0.0, severity, told, last_told, silent: 0 })
    }

    /// Takes the next value, and tells if it begins an alarm or makes it worse.
    ///
    /// What is not finite is no observation; what is further from zero than 1e150 counts as 1e150.
    pub fn observe(&mut self, value: f64) -> Option<Anomaly> {
        if !value.is_finite() {
            return None;
        }
        let (expected, z) = (self.mean, self.score(value));
        let learning = self.seen < u64::from(self.config.warm_up.max(1));
        self.learn(value.clamp(-MAGNITUDE_MAX, MAGNITUDE_MAX), learning);
        if learning {
            return None;
        }
        let severity = self.judge(z.abs())?;
        Some(Anomaly { value, expected, z, severity })
    }

    /// Returns what is expected, `None` until the first value.
    #[must_use]
    pub fn expected(&self) -> Option<f64> {
        (self.seen > 0).then_some(self.mean)
    }

    /// Returns the deviation that is reckoned with: at least the least one that is configured.
    #[must_use]
    pub fn deviation(&self) -> f64 {
        let least = self.config.deviation_min.max(self.config.deviation_share_min * self.mean.abs());
        self.variance.sqrt().max(least)
    }

    /// Returns the severity of now; `None` is usual.
    #[must_use]
    pub const fn severity(&self) -> Option<Severity> {
        self.severity
    }

    fn score(&self, value: f64) -> f64 {
        (value.clamp(-MAGNITUDE_MAX, MAGNITUDE_MAX) - self.mean) / self.deviation()
    }

    fn learn(&mut self, value: f64, learning: bool) {
        self.seen = self.seen.saturating_add(1);
        let weight = self.config.alpha.max(1.0 / self.seen as f64);
        let bound = self.config.critical_z * self.deviation();
        let distance = value - self.mean;
        let distance = if learning { distance } else { distance.clamp(-bound, bound) };
        self.mean += weight * distance;
        self.variance = (1.0 - weight) * (self.variance + weight * distance * distance);
    }

    /// Follows the alarm, and returns the severity if it is to be told.
    fn judge(&mut self, z: f64) -> Option<Severity> {
        let reached = if z >= self.config.critical_z {
            Some(Severity::Critical)
        } else if z >= self.config.warning_z {
            Some(Severity::Warning)
        } else {
            None
        };
        if z < self.config.calm_z {
            (self.severity, self.told) = (None, None);
        } else {
            self.severity = self.severity.max(reached);
        }
        let hushed = if self.silent > 0 { self.last_told } else { None };
        self.silent = self.silent.saturating_sub(1);
        if reached <= self.told.max(hushed) {
            return None;
        }
        (self.told, self.last_told) = (reached, reached);
        self.silent = self.config.cool_down;
        reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: Option<Severity> = Some(Severity::Warning);
    const C: Option<Severity> = Some(Severity::Critical);

    /// Expects 100 with a deviation of 5.
    fn settled(cool_down: u32) -> Ewma {
        let mut ewma =
            Ewma::new(EwmaConfig { cool_down, ..EwmaConfig::default() }).expect("a fair configuration");
        for _ in 0..1_000 {
            assert_eq!(ewma.observe(100.0), None);
        }
        ewma
    }

    /// Plays values, and compares the severity that is told of each.
    #[track_caller]
    fn check(mut ewma: Ewma, story: &[(f64, Option<Severity>)]) {
        for (at, (value, severity)) in story.iter().enumerate() {
            let told = ewma.observe(*value).map(|anomaly| anomaly.severity);
            assert_eq!(told, *severity, "value {at}: {value}, expected {:?}", ewma.expected());
        }
    }

    #[test]
    fn an_anomaly_tells_what_was_expected() {
        let anomaly = settled(0).observe(80.0).expect("four deviations");
        assert_eq!((anomaly.value, anomaly.expected, anomaly.severity), (80.0, 100.0, Severity::Warning));
        assert!((anomaly.z + 4.0).abs() < 1e-9, "{}", anomaly.z);
    }

    #[test]
    fn an_alarm_is_told_once_and_once_more_when_it_gets_worse() {
        check(
            settled(0),
            &[(114.0, None), (116.0, W), (117.0, None), (150.0, C), (160.0, None), (170.0, None)],
        );
    }

    #[test]
    fn an_alarm_ends_well_below_its_bound() {
        // The deviation has grown a little by then: 112 is above two of them, 105 is below.
        check(settled(0), &[(116.0, W), (112.0, None), (119.0, None), (105.0, None), (122.0, W)]);
    }

    #[test]
    fn after_an_alarm_only_worse_ones_are_told() {
        let calm = (100.0, None);
        check(settled(3), &[(116.0, W), calm, (118.0, None), calm, (120.0, W)]);
        check(settled(3), &[(116.0, W), calm, (150.0, C), calm, (170.0, None), calm, calm, (190.0, C)]);
    }

    #[test]
    fn an_alarm_that_outlasts_the_silence_is_told_then() {
        check(settled(3), &[(116.0, W), (100.0, None), (121.0, None), (122.0, None), (126.0, W)]);
    }

    #[test]
    fn a_new_level_is_learnt() {
        let mut ewma = settled(0);
        assert_eq!(ewma.observe(1_000.0).map(|anomaly| anomaly.severity), C);
        let learnt = (0..100).position(|_| ewma.observe(1_000.0).is_none() && ewma.severity().is_none());
        assert!(learnt.is_some_and(|values| values < 50), "{learnt:?}");
    }

    #[test]
    fn one_wild_value_does_not_hide_the_next() {
        let mut ewma = settled(0);
        assert!(ewma.observe(1e9).is_some());
        assert_eq!(ewma.observe(100.0), None);
        assert!(ewma.observe(200.0).is_some());
    }

    #[test]
    fn nothing_is_told_in_the_warm_up() {
        for warm_up in [0, 1, 30] {
            let config = EwmaConfig { warm_up, ..EwmaConfig::default() };
            let mut ewma = Ewma::new(config).expect("a fair configuration");
            assert_eq!(ewma.expected(), None);
            for at in 0..warm_up.max(1) {
                assert_eq!(ewma.observe(f64::from(at) * 1e6 + 5.0), None);
            }
        }
    }

    #[test]
    fn the_warm_up_weighs_all_values_alike() {
        let mut ewma = Ewma::new(EwmaConfig::default()).expect("a fair configuration");
        for value in [1.0, 2.0, 6.0] {
            ewma.observe(value);
        }
        assert!((ewma.expected().expect("three values") - 3.0).abs() < 1e-12);
        assert!((ewma.deviation() - (14.0_f64 / 3.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn no_value_breaks_it() {
        let mut ewma = settled(0);
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(ewma.observe(value), None);
        }
        assert_eq!(ewma, settled(0));
        for value in [f64::MAX, f64::MIN, 0.0, f64::MAX, f64::MIN].into_iter().cycle().take(1_000) {
            ewma.observe(value);
            assert!(ewma.expected().is_some_and(f64::is_finite) && ewma.deviation().is_finite());
        }
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        let fair = EwmaConfig::default();
        for (config, why) in [
            (EwmaConfig { alpha: 0.0, ..fair }, ConfigError::Range("alpha")),
            (EwmaConfig { alpha: f64::NAN, ..fair }, ConfigError::Range("alpha")),
            (EwmaConfig { warning_z: f64::INFINITY, ..fair }, ConfigError::Range("warning_z")),
            (EwmaConfig { calm_z: 3.0, ..fair }, ConfigError::Range("calm_z")),
            (EwmaConfig { deviation_min: 0.0, ..fair }, ConfigError::Range("deviation_min")),
            (EwmaConfig { deviation_share_min: -0.1, ..fair }, ConfigError::Range("deviation_share_min")),
            (EwmaConfig { critical_z: 2.9, ..fair }, ConfigError::Order),
        ] {
            assert_eq!(Ewma::new(config).map(|_| ()), Err(why), "{config:?}");
        }
    }
}
