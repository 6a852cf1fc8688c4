//! A fixed bound.

use crate::severity::{ConfigError, Severity};

/// Where the bad side of a bound is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Values above the bound are bad, as with times.
    Above,
    /// Values below the bound are bad, as with rates of success.
    Below,
}

/// What a [`Threshold`] asks for; bounds and margin are in the unit of the values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ThresholdConfig {
    /// Which side of the bounds is bad.
    pub side: Side,
    /// Beyond this it is a warning; exactly this is still good.
    pub warning: Option<f64>,
    /// Beyond this it is critical; exactly this is not yet.
    pub critical: Option<f64>,
    /// How far a value has to come back behind a bound before it counts as good again (hysteresis).
    pub margin: f64,
    /// How long all values have to be good before a severity ends, in milliseconds (cool-down).
    pub cool_down_ms: u64,
}

/// A change of severity; `None` is good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ThresholdChange {
    /// What it was.
    pub from: Option<Severity>,
    /// What it is now.
    pub to: Option<Severity>,
    /// The value that made the change.
    pub value: f64,
    /// The bound that was crossed: the one that `to` is beyond, or that all values came back from.
    pub bound: f64,
}

/// Tells when values go beyond a fixed bound, and when they are back.
///
/// A severity begins with the first value beyond its bound. It ends when for the whole cool-down no value has been
/// beyond the bound or within the margin behind it, so that a value which flaps around a bound is told once.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    config: ThresholdConfig,
    severity: Option<Severity>,
    /// When a value was last at least a warning, and when critical, in milliseconds.
    warned_ms: u64,
    critical_ms: u64,
}

impl Threshold {
    /// Makes a threshold that has seen nothing.
    ///
    /// # Errors
    ///
    /// No bound at all, bounds or a margin that are no numbers, a negative margin, or a critical bound that would be
    /// reached before the warning.
    pub fn new(config: ThresholdConfig) -> Result<Self, ConfigError> {
        let ThresholdConfig { side, warning, critical, margin, .. } = config;
        for (name, bound) in [("warning", warning), ("critical", critical)] {
            if bound.is_some_and(|bound| !bound.is_finite()) {
                return Err(ConfigError::Range(name));
            }
        }
        if !margin.is_finite() || margin < 0.0 {
            return Err(ConfigError::Range("margin"));
        }
        match (warning, critical) {
            (None, None) => Err(ConfigError::NoBound),
            (Some(warning), Some(critical)) if !beyond(side, critical, warning) => Err(ConfigError::Order),
            _ => Ok(Self { config, severity: None, warned_ms: 0, critical_ms: 0 }),
        }
    }

    /// Takes the value of a moment, and tells what changed with it.
    ///
    /// What is not a number is no observation. After a step of the clock backwards the cool-down begins anew.
    pub fn observe(&mut self, value: f64, now_ms: u64) -> Option<ThresholdChange> {
        if value.is_nan() {
            return None;
        }
        self.warned_ms = self.warned_ms.min(now_ms);
        self.critical_ms = self.critical_ms.min(now_ms);
        let reached = self.reached(value);
        if reached >= Some(Severity::Warning) {
            self.warned_ms = now_ms;
        }
        if reached >= Some(Severity::Critical) {
            self.critical_ms = now_ms;
        }
        let (from, to) = (self.severity, reached.max(self.held(now_ms)));
        if from == to {
            return None;
        }
        self.severity = to;
        let bound = self.bound(if to > from { to } else { from })?;
        Some(ThresholdChange { from, to, value, bound })
    }

    /// Returns the severity of now.
    #[must_use]
    pub const fn severity(&self) -> Option<Severity> {
        self.severity
    }

    /// The severity of a value; what holds already ends only behind the margin.
    fn reached(&self, value: f64) -> Option<Severity> {
        let holds = |severity: Severity| {
            let Some(bound) = self.bound(Some(severity)) else { return false };
            let margin = if self.severity >= Some(severity) { self.config.margin } else { 0.0 };
            let behind = match self.config.side {
                Side::Above => bound - margin,
                Side::Below => bound + margin,
            };
            beyond(self.config.side, value, behind)
        };
        [Severity::Critical, Severity::Warning].into_iter().find(|severity| holds(*severity))
    }

    /// The severity that the cool-down still keeps.
    fn held(&self, now_ms: u64) -> Option<Severity> {
        let cooling = |since_ms: u64| now_ms.saturating_sub(since_ms) < self.config.cool_down_ms;
        let kept = if cooling(self.critical_ms) {
            Some(Severity::Critical)
        } else if cooling(self.warned_ms) && self.config.warning.is_some() {
            Some(Severity::Warning)
        } else {
            None
        };
        kept.min(self.severity)
    }

    const fn bound(&self, severity: Option<Severity>) -> Option<f64> {
        match severity {
            Some(Severity::Warning) => self.config.warning,
            Some(Severity::Critical) => self.config.critical,
            None => None,
        }
    }
}

fn beyond(side: Side, value: f64, bound: f64) -> bool {
    match side {
        Side::Above => value > bound,
        Side::Below => value < bound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: Option<Severity> = Some(Severity::Warning);
    const C: Option<Severity> = Some(Severity::Critical);

    /// The 95th percentile of syncs: above 300 ms, above 500 ms.
    fn slow(margin: f64, cool_down_ms: u64) -> Threshold {
        let config = ThresholdConfig {
            side: Side::Above,
            warning: Some(300.0),
            critical: Some(500.0),
            margin,
            cool_down_ms,
        };
        Threshold::new(config).expect("a fair configuration")
    }

    /// Plays (time, value) and compares what is told of each.
    #[track_caller]
    fn check(mut threshold: Threshold, story: &[(u64, f64, Option<Severity>)]) {
        let mut before = None;
        for (now_ms, value, severity) in story {
            let told = threshold.observe(*value, *now_ms).map(|change| (change.from, change.to));
            let wanted = (before != *severity).then_some((before, *severity));
            assert_eq!(told, wanted, "{value} at {now_ms}");
            assert_eq!(threshold.severity(), *severity);
            before = *severity;
        }
    }

    #[test]
    fn severities_rise_at_once() {
        check(
            slow(0.0, 0),
            &[
                (1, 299.0, None),
                (2, 300.0, None),
                (3, 301.0, W),
                (4, 500.0, W),
                (5, 501.0, C),
                (6, 400.0, W),
                (7, 100.0, None),
                (8, f64::INFINITY, C),
                (9, f64::NAN, C),
                (10, 0.0, None),
            ],
        );
    }

    #[test]
    fn the_margin_keeps_a_severity() {
        check(
            slow(20.0, 0),
            &[
                (1, 290.0, None),
                (2, 310.0, W),
                (3, 290.0, W),
                (4, 281.0, W),
                (5, 280.0, None),
                (6, 290.0, None),
            ],
        );
    }

    #[test]
    fn a_severity_ends_after_the_cool_down() {
        check(
            slow(0.0, 100),
            &[
                (0, 200.0, None),
                (10, 400.0, W),
                (109, 200.0, W),
                (110, 200.0, None),
                (120, 600.0, C),
                (150, 400.0, C),
                (200, 200.0, C),
                // Critical ends 100 ms after the last such value; the warning was met 30 ms later.
                (220, 200.0, W),
                (249, 200.0, W),
                (250, 200.0, None),
            ],
        );
    }

    #[test]
    fn what_flaps_is_told_once() {
        let mut threshold = slow(0.0, 1_000);
        let told = (0..10_000_u64).filter_map(|at| {
            let value = if at % 2 == 0 { 301.0 } else { 299.0 };
            threshold.observe(value, at * 100)
        });
        assert_eq!(told.count(), 1);
    }

    #[test]
    fn a_clock_that_steps_back_does_not_hold_a_severity_for_ever() {
        check(slow(0.0, 100), &[(1_000_000, 400.0, W), (500, 200.0, W), (599, 200.0, W), (600, 200.0, None)]);
    }

    #[test]
    fn the_other_side_is_its_mirror() {
        let config = ThresholdConfig {
            side: Side::Below,
            warning: Some(98.0),
            critical: Some(95.0),
            margin: 1.0,
            cool_down_ms: 0,
        };
        let threshold = Threshold::new(config).expect("a fair configuration");
        check(
            threshold,
            &[
                (1, 98.0, None),
                (2, 97.9, W),
                (3, 98.9, W),
                (4, 94.0, C),
                (5, 95.5, C),
                (6, 96.0, W),
                (7, 99.0, None),
            ],
        );
    }

    #[test]
    fn one_bound_is_enough() {
        let config = ThresholdConfig {
            side: Side::Below,
            warning: Some(80.0),
            critical: None,
            margin: 0.0,
            cool_down_ms: 10,
        };
        check(
            Threshold::new(config).expect("a fair configuration"),
            &[(1, 0.0, W), (5, 90.0, W), (11, 90.0, None)],
        );
        let config = ThresholdConfig { warning: None, critical: Some(80.0), ..config };
        check(
            Threshold::new(config).expect("a fair configuration"),
            &[(1, 0.0, C), (5, 90.0, C), (11, 90.0, None)],
        );
    }

    #[test]
    fn the_bound_that_was_crossed_is_told() {
        let mut threshold = slow(0.0, 0);
        let bounds =
            [400.0, 600.0, 100.0].map(|value| threshold.observe(value, 0).map(|change| change.bound));
        assert_eq!(bounds, [Some(300.0), Some(500.0), Some(500.0)]);
    }

    #[test]
    fn configurations_that_cannot_work_are_refused() {
        let fair = slow(0.0, 0).config;
        for (config, why) in [
            (ThresholdConfig { warning: None, critical: None, ..fair }, ConfigError::NoBound),
            (ThresholdConfig { warning: Some(f64::NAN), ..fair }, ConfigError::Range("warning")),
            (ThresholdConfig { critical: Some(f64::INFINITY), ..fair }, ConfigError::Range("critical")),
            (ThresholdConfig { margin: -1.0, ..fair }, ConfigError::Range("margin")),
            (ThresholdConfig { critical: Some(300.0), ..fair }, ConfigError::Order),
            (ThresholdConfig { side: Side::Below, ..fair }, ConfigError::Order),
        ] {
            assert_eq!(Threshold::new(config).map(|_| ()), Err(why), "{config:?}");
        }
    }
}
