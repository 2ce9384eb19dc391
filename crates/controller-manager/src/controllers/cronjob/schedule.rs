//! Cron schedules: five fields or a macro, in a time zone.

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp, ToSpan};

/// The sets of minutes, hours, days and months at which to run, as bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// If one of the two day fields is `*`, the other alone decides; else either will do.
    any_day: bool,
    /// `@every`: this long after the last.
    every: Option<SignedDuration>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct ScheduleError(String);

const MONTHS: &[&str] = &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// A schedule that does not fire within this many years never does: the 30th of February.
const HORIZON_YEARS: i16 = 5;

impl Schedule {
    pub(super) fn parse(text: &str) -> Result<Self, ScheduleError> {
        let text = text.trim();
        if let Some(duration) = text.strip_prefix("@every ") {
            let nanos = meta::time::parse_duration(duration.trim())
                .map_err(|error| ScheduleError(error.to_string()))?;
            let seconds = SignedDuration::from_nanos(nanos.0).as_secs().max(1);
            return Ok(Self {
                every: Some(SignedDuration::from_secs(seconds)),
                ..Self::fields("* * * * *")?
            });
        }
        match text {
            "@yearly" | "@annually" => Self::fields("0 0 1 1 *"),
            "@monthly" => Self::fields("0 0 1 * *"),
            "@weekly" => Self::fields("0 0 * * 0"),
            "@daily" | "@midnight" => Self::fields("0 0 * * *"),
            "@hourly" => Self::fields("0 * * * *"),
            other => Self::fields(other),
        }
    }

    /// The first time after `after`.
    pub(super) fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Some(every) = self.every {
            return Timestamp::from_second(after.as_second()).ok()?.checked_add(every).ok();
        }
        let mut local = after.to_zoned(zone.clone()).datetime().checked_add(1.minute()).ok()?;
        local = local.with().second(0).subsec_nanosecond(0).build().ok()?;
        let last_year = local.year().saturating_add(HORIZON_YEARS);
        while local.year() <= last_year {
            if !has(self.months, local.month()) {
                local = local.with().day(1).hour(0).minute(0).build().ok()?.checked_add(1.month()).ok()?;
            } else if !self.on_day(local) {
                local = local.with().hour(0).minute(0).build().ok()?.checked_add(1.day()).ok()?;
            } else if !has(self.hours, local.hour()) {
                local = local.with().minute(0).build().ok()?.checked_add(1.hour()).ok()?;
            } else if !has(self.minutes, local.minute()) {
                local = local.checked_add(1.minute()).ok()?;
            } else {
                let time = zone.to_ambiguous_zoned(local);
                // A time that the clocks skip does not exist; one that they repeat counts once.
                if !matches!(time.offset(), AmbiguousOffset::Gap { .. }) {
                    let time = time.compatible().ok()?.timestamp();
                    if time > after {
                        return Some(time);
                    }
                }
                local = local.checked_add(1.minute()).ok()?;
            }
        }
        None
    }

    fn on_day(&self, local: DateTime) -> bool {
        let day = has(self.days, local.day());
        let weekday = has(self.weekdays, local.weekday().to_sunday_zero_offset());
        if self.any_day { day && weekday } else { day || weekday }
    }

    fn fields(text: &str) -> Result<Self, ScheduleError> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields.as_slice() else {
            return Err(ScheduleError(format!(
                "expected exactly 5 fields, found {}: {text:?}",
                fields.len()
            )));
        };
        let star = |field: &str| field.starts_with('*') || field == "?";
        // Sunday is 0 and 7.
        let weekday_bits = field(weekdays, 0, 7, WEEKDAYS)?;
        Ok(Self {
            minutes: field(minutes, 0, 59, &[])?,
            hours: field(hours, 0, 23, &[])?,
            days: field(days, 1, 31, &[])?,
            months: field(months, 1, 12, MONTHS)?,
            weekdays: weekday_bits | (weekday_bits >> 7 & 1),
            any_day: star(days) || star(weekdays),
            every: None,
        })
    }
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| bits >> value & 1 == 1)
}

fn field(text: &str, min: u32, max: u32, names: &[&str]) -> Result<u64, ScheduleError> {
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = match part.split_once('/') {
            None => (part, None),
            Some((range, step)) => (range, Some(number(step, &[], 1)?)),
        };
        let (first, last) = match range {
            "*" | "?" => (min, max),
            _ => match range.split_once('-') {
                Some((first, last)) => (number(first, names, min)?, number(last, names, min)?),
                None => {
                    let first = number(range, names, min)?;
                    (first, if step.is_some() { max } else { first })
                }
            },
        };
        if first < min || last > max || first > last || step == Some(0) {
            return Err(ScheduleError(format!("{part:?} is not within {min}-{max}")));
        }
        let step = usize::try_from(step.unwrap_or(1)).unwrap_or(1);
        for value in (first..=last).step_by(step) {
            bits |= 1 << value;
        }
    }
    Ok(bits)
}

fn number(text: &str, names: &[&str], base: u32) -> Result<u32, ScheduleError> {
    let lower = text.to_ascii_lowercase();
    let named = names.iter().position(|name| *name == lower).and_then(|at| u32::try_from(at).ok());
    let number = named.map(|at| at + base).or_else(|| text.parse().ok());
    number.ok_or_else(|| ScheduleError(format!("{text:?} is not a number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_fire_when_cron_says() {
        let table = [
            ("*/5 * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:05:00Z"),
            ("0 0 1 * *", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"),
            ("30 4 1,15 * 5", "2026-01-01T05:00:00Z", "2026-01-02T04:30:00Z"),
            ("0 22 * * 1-5", "2026-01-02T23:00:00Z", "2026-01-05T22:00:00Z"),
            ("0 0 * * 7", "2026-01-01T00:00:00Z", "2026-01-04T00:00:00Z"),
            ("0 0 29 feb *", "2026-01-01T00:00:00Z", "2028-02-29T00:00:00Z"),
            ("@hourly", "2026-01-01T00:59:59Z", "2026-01-01T01:00:00Z"),
            ("@every 90s", "2026-01-01T00:00:00Z", "2026-01-01T00:01:30Z"),
            ("5-10/2 3 * * *", "2026-01-01T03:06:00Z", "2026-01-01T03:07:00Z"),
        ];
        for (text, after, expected) in table {
            let next = Schedule::parse(text).unwrap().next(after.parse().unwrap(), &TimeZone::UTC);
            assert_eq!(next.unwrap().to_string(), expected, "{text}");
        }
        let never = Schedule::parse("0 0 30 2 *").unwrap();
        assert_eq!(never.next(Timestamp::UNIX_EPOCH, &TimeZone::UTC), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "* * * *", "60 * * * *", "* * 0 * *", "5-1 * * * *", "*/0 * * * *", "a * * * *", "@never"]
        {
            assert!(Schedule::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_those_of_the_zone() {
        let zone = TimeZone::posix("EST5EDT,M3.2.0,M11.1.0").unwrap();
        let daily = Schedule::parse("30 2 * * *").unwrap();
        let next = daily.next("2026-01-01T00:00:00Z".parse().unwrap(), &zone).unwrap();
        assert_eq!(next.to_string(), "2026-01-01T07:30:00Z");
        // On the 8th of March 02:30 does not exist there.
        let skipped = daily.next("2026-03-07T08:00:00Z".parse().unwrap(), &zone).unwrap();
        assert_eq!(skipped.to_string(), "2026-03-09T06:30:00Z");
    }
}
