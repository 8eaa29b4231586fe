//! What is read, and which moments that names.

use super::*;

fn cron(text: &str) -> CronExpression {
    text.parse().unwrap()
}

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

/// The first `count` moments after `from`, as the clock of `zone_name` shows them, each with its offset.
fn ticks(text: &str, zone_name: &str, from: &str, count: usize) -> Vec<String> {
    let (cron, tz) = (cron(text), zone(zone_name));
    let mut time: Timestamp = from.parse().unwrap();
    let mut all = Vec::new();
    for _ in 0..count {
        time = cron.after(&tz, time).unwrap();
        all.push(time.to_zoned_datetime(tz.clone()).strftime("%m-%d %H:%M %z").to_string());
    }
    all
}

#[test]
fn fields_are_numbers_names_ranges_steps_and_lists() {
    let expression = cron("  */20  8-18/5,23 1,15 jan,Mar-4 * ");
    assert_eq!(expression.minutes, Set::of([0, 20, 40].into_iter()));
    assert_eq!(expression.hours, Set::of([8, 13, 18, 23].into_iter()));
    assert_eq!(expression.days, Set::of([1, 15].into_iter()));
    assert_eq!(expression.months, Set::of([1, 3, 4].into_iter()));
    assert_eq!(expression.weekdays, Set::of(0..=6));
    assert_eq!(expression.to_string(), "*/20 8-18/5,23 1,15 jan,Mar-4 *");
    assert_eq!(cron("0 0 * * fri-sun").weekdays, Set::of([0, 5, 6].into_iter()));
    assert_eq!(cron("0 0 * * 7").weekdays, cron("0 0 * * sun").weekdays);
}

#[test]
fn errors_name_the_field_and_what_it_takes() {
    let error = |text: &str| text.parse::<CronExpression>().unwrap_err().to_string();
    assert_eq!(
        error("0 24 * * *"),
        "\"24\" is no hour in \"0 24 * * *\": write *, a number, A-B, */STEP or A-B/STEP, with numbers 0 to 23"
    );
    assert!(error("* * * *").starts_with("\"* * * *\" has 4 of the 5 fields"));
    assert!(error("").contains("has 0 of the 5"));
    assert!(error("0 0 30 feb *").contains("never comes"));
    for bad in
        ["60", "a", "", "1-", "-1", "5-4", "*/0", "*/", "5/10", "+5", "1,,2", "1;2", "999", "*/300", "٣"]
    {
        assert!(format!("{bad} 0 * * *").parse::<CronExpression>().is_err(), "{bad:?} was taken for minutes");
    }
    for bad in ["0 0 0 * *", "0 0 32 * *", "0 0 * 13 *", "0 0 * foo *", "0 0 * * 8", "0 0 31 4,6,9,11 *"] {
        assert!(bad.parse::<CronExpression>().is_err(), "{bad:?} was taken for an expression");
    }
}

#[test]
fn day_and_weekday_are_alternatives_only_when_both_are_given() {
    let from = "2026-02-01T12:00:00Z";
    let days = |text| ticks(text, "UTC", from, 3);
    assert_eq!(days("0 0 13 * fri"), ["02-06 00:00 +0000", "02-13 00:00 +0000", "02-20 00:00 +0000"]);
    assert_eq!(days("0 0 13 * *"), ["02-13 00:00 +0000", "03-13 00:00 +0000", "04-13 00:00 +0000"]);
    assert_eq!(days("0 0 */16 * mon"), ["06-01 00:00 +0000", "08-17 00:00 +0000", "02-01 00:00 +0000"]);
}

#[test]
fn rare_days_are_found() {
    let leap = cron("0 0 29 2 *").after(&TimeZone::UTC, "2096-03-01T00:00:00Z".parse().unwrap());
    assert_eq!(leap.unwrap().to_string(), "2104-02-29T00:00:00Z");
    let hours = cron("59 * 29 2 *").after(&zone("Europe/Berlin"), "2024-02-29T23:00:00Z".parse().unwrap());
    assert_eq!(hours.unwrap().to_string(), "2028-02-28T23:59:00Z");
    let last = cron("0 0 * * *").after(&TimeZone::UTC, "9999-12-30T12:00:00Z".parse().unwrap());
    assert_eq!(last, None);
    assert_eq!(cron("0 * * * *").after(&TimeZone::UTC, Timestamp::MAX), None);
}

#[test]
fn a_moment_is_not_after_itself() {
    let cron = cron("0 0 * * *");
    let midnight: Timestamp = "2026-05-05T00:00:00Z".parse().unwrap();
    let just_before = midnight - SignedDuration::from_nanos(1);
    assert_eq!(cron.after(&TimeZone::UTC, just_before), Some(midnight));
    assert_eq!(cron.after(&TimeZone::UTC, midnight).unwrap().to_string(), "2026-05-06T00:00:00Z");
}

#[test]
fn every_hour_follows_the_clock_when_it_is_set() {
    let hourly = |from| ticks("0 * * * *", "Europe/Berlin", from, 3);
    assert_eq!(
        hourly("2026-03-29T00:00:00Z"),
        ["03-29 03:00 +0200", "03-29 04:00 +0200", "03-29 05:00 +0200"]
    );
    assert_eq!(
        hourly("2026-10-24T23:30:00Z"),
        ["10-25 02:00 +0200", "10-25 02:00 +0100", "10-25 03:00 +0100"]
    );
    let skipped = ticks("30 * * * *", "Europe/Berlin", "2026-03-29T00:00:00Z", 2);
    assert_eq!(skipped, ["03-29 01:30 +0100", "03-29 03:30 +0200"]);
}

#[test]
fn half_an_hour_of_daylight_saving() {
    let lord_howe = |text, from| ticks(text, "Australia/Lord_Howe", from, 3);
    // 02:00 becomes 02:30, then 02:00 becomes 01:30.
    assert_eq!(
        lord_howe("0 * * * *", "2025-10-04T14:00:00Z"),
        ["10-05 01:00 +1030", "10-05 03:00 +1100", "10-05 04:00 +1100"]
    );
    assert_eq!(
        lord_howe("0 * * * *", "2026-04-04T13:30:00Z"),
        ["04-05 01:00 +1100", "04-05 02:00 +1030", "04-05 03:00 +1030"]
    );
    assert_eq!(
        lord_howe("30 * * * *", "2026-04-04T13:30:00Z"),
        ["04-05 01:30 +1100", "04-05 01:30 +1030", "04-05 02:30 +1030"]
    );
    assert_eq!(
        lord_howe("0 2 * * *", "2025-10-04T00:00:00Z"),
        ["10-05 02:30 +1100", "10-06 02:00 +1100", "10-07 02:00 +1100"]
    );
}

#[test]
fn a_skipped_midnight_comes_at_the_end_of_the_gap() {
    assert_eq!(
        ticks("0 0 * * *", "America/Sao_Paulo", "2017-10-14T04:00:00Z", 2),
        ["10-15 01:00 -0200", "10-16 00:00 -0200"]
    );
    assert_eq!(
        ticks("*/20 0 * * *", "Africa/Cairo", "2023-04-27T12:00:00Z", 2),
        ["04-28 01:00 +0300", "04-29 00:00 +0300"]
    );
    // A whole day that was skipped.
    assert_eq!(
        ticks("0 12 * * *", "Pacific/Apia", "2011-12-29T12:00:00Z", 3),
        ["12-29 12:00 -1000", "12-31 00:00 +1400", "12-31 12:00 +1400"]
    );
}

#[test]
fn a_repeated_midnight_counts_once() {
    assert_eq!(
        ticks("0 0 * * *", "America/Havana", "2026-10-31T12:00:00Z", 2),
        ["11-01 00:00 -0400", "11-02 00:00 -0500"]
    );
    // Asked for in the second pass.
    assert_eq!(
        ticks("*/30 1,2 * * *", "Europe/Berlin", "2026-10-25T01:10:00Z", 2),
        ["10-26 01:00 +0100", "10-26 01:30 +0100"]
    );
}
