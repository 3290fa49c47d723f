//! Made-up people and their records, for demonstrations and load tests.
//!
//! Everything follows from a seed: the same seed and number give the same
//! person, byte for byte, on every machine. Nobody real can be met in it; see
//! [`super::words`]. vCards and calendars are valid and use CRLF and folding.

use super::png;
use super::words::{
    CITIES, DOMAINS, FAMILY, GIVEN, Name, ORGANIZATIONS, PHONE_RANGES, SENTENCES, STREETS, SUMMARIES, TASKS, TITLES,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

/// A user with the records of one account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Person {
    /// Different for each number of a seed.
    pub user_id: String,
    /// In no particular order.
    pub records: Vec<MadeRecord>,
}

/// A made-up record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MadeRecord {
    /// `contacts`, `events`, `todos`, `notes` or `photos`.
    pub collection: &'static str,
    /// A UUID; also the UID of a card or calendar.
    pub record_id: String,
    /// `text/vcard`, `text/calendar`, `text/plain` or `image/png`.
    pub content_type: &'static str,
    /// The record's bytes.
    pub payload: Vec<u8>,
}

/// The `n`-th person of a seed, with 14 to 26 records.
pub fn person(seed: u64, n: u64) -> Person {
    let mut random = Random::new(seed, n);
    let (given, family) = name(&mut random);
    let user_id = format!("{}.{}-{n}", given.1, family.1);
    let count = 14 + random.below(13);
    let records = (0..count).map(|_| record(&mut random)).collect();
    Person { user_id, records }
}

/// The records of all people of a seed, person by person, without end.
pub fn records(seed: u64) -> impl Iterator<Item = (String, MadeRecord)> {
    (0..=u64::MAX).flat_map(move |n| {
        let Person { user_id, records } = person(seed, n);
        records.into_iter().map(move |record| (user_id.clone(), record))
    })
}

/// SplitMix64 (Steele, Lea and Flood 2014): small, and the same everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64, n: u64) -> Self {
        let mut seeded = Self(seed);
        let start = seeded.next() ^ n.wrapping_mul(0xD1B5_4A32_D192_ED03);
        Self(Self(start).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from 0 to `limit` - 1, or 0.
    fn below(&mut self, limit: u64) -> u64 {
        self.next().checked_rem(limit).unwrap_or(0)
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn pick<T: Copy, const N: usize>(&mut self, list: &[T; N]) -> T {
        const { assert!(N > 0) };
        let at = usize::try_from(self.next() % N as u64).unwrap_or(0);
        list.get(at).copied().unwrap_or(list[0])
    }

    /// A version 4 UUID.
    fn uuid(&mut self) -> String {
        let (high, low) = (self.next(), self.next());
        format!(
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            high >> 32,
            high >> 16 & 0xFFFF,
            high & 0xFFF,
            0x8000 | low >> 48 & 0x3FFF,
            low & 0xFFFF_FFFF_FFFF
        )
    }

    fn sentences(&mut self, least: u64, most: u64) -> String {
        let count = least + self.below(most - least + 1);
        let all: Vec<&str> = (0..count).map(|_| self.pick(&SENTENCES)).collect();
        all.join(" ")
    }

    /// Replaces the `{}` of a phrase by a given name.
    fn phrase<const N: usize>(&mut self, phrases: &[&str; N]) -> String {
        let phrase = self.pick(phrases);
        phrase.replace("{}", self.pick(&GIVEN).0)
    }

    fn digits(&mut self, count: usize) -> String {
        (0..count).map(|_| char::from(b'0' + self.byte() % 10)).collect()
    }
}

fn record(random: &mut Random) -> MadeRecord {
    let id = random.uuid();
    match random.below(100) {
        0..60 => MadeRecord {
            collection: "contacts",
            payload: contact(random, &id),
            record_id: id,
            content_type: "text/vcard",
        },
        60..80 => MadeRecord {
            collection: "events",
            payload: event(random, &id),
            record_id: id,
            content_type: "text/calendar",
        },
        80..88 => {
            MadeRecord { collection: "todos", payload: todo(random, &id), record_id: id, content_type: "text/calendar" }
        }
        88..96 => MadeRecord { collection: "notes", payload: note(random), record_id: id, content_type: "text/plain" },
        _ => MadeRecord {
            collection: "photos",
            payload: photo(random, 20, 60),
            record_id: id,
            content_type: "image/png",
        },
    }
}

fn name(random: &mut Random) -> (Name, Name) {
    (random.pick(&GIVEN), random.pick(&FAMILY))
}

fn phone(random: &mut Random) -> String {
    let (prefix, digits) = random.pick(&PHONE_RANGES);
    format!("{prefix}{}", random.digits(digits))
}

/// A mail address; the number keeps namesakes apart.
fn email(random: &mut Random, (given, family): (Name, Name)) -> String {
    let domain = random.pick(&DOMAINS);
    format!("{}.{}{}@{domain}", given.1, family.1, random.below(90) + 10)
}

/// A day of the years 2024 to 2027; the 29th to 31st are left out.
fn day(random: &mut Random) -> String {
    format!("{}{:02}{:02}", 2024 + random.below(4), 1 + random.below(12), 1 + random.below(28))
}

fn utc_time(random: &mut Random) -> String {
    let minute = random.below(4) * 15;
    format!("{}T{:02}{minute:02}00Z", day(random), random.below(24))
}

/// Content lines with CRLF, folded at 75 octets (RFC 5545 §3.1, RFC 6350 §3.2).
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn add(&mut self, line: &str) {
        const LIMIT: usize = 75;
        let mut length = 0;
        let mut encoded = [0; 4];
        for character in line.chars() {
            // Never inside a character, and the leading space counts too.
            if length + character.len_utf8() > LIMIT {
                self.0.extend_from_slice(b"\r\n ");
                length = 1;
            }
            length += character.len_utf8();
            self.0.extend_from_slice(character.encode_utf8(&mut encoded).as_bytes());
        }
        self.0.extend_from_slice(b"\r\n");
    }

    /// `property:text`, the text escaped.
    fn add_text(&mut self, property: &str, text: &str) {
        self.add(&format!("{property}:{}", escape(text)));
    }
}

fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('\n', "\\n");
    text.replace(',', "\\,").replace(';', "\\;")
}

fn contact(random: &mut Random, id: &str) -> Vec<u8> {
    let v4 = random.percent(50);
    let (given, family) = name(random);
    let mut card = Lines::default();
    card.add("BEGIN:VCARD");
    card.add(if v4 { "VERSION:4.0" } else { "VERSION:3.0" });
    card.add("PRODID:-//Example//Made-up People 1.0//EN");
    card.add(&format!("UID:{id}"));
    card.add_text("FN", &format!("{} {}", given.0, family.0));
    card.add(&format!("N:{};{};;;", escape(family.0), escape(given.0)));
    let mail = email(random, (given, family));
    card.add(&format!("EMAIL;TYPE={}:{mail}", if v4 { "home" } else { "INTERNET" }));
    for kind in ["cell", "work", "home"] {
        if random.percent(60) {
            let number = phone(random);
            if v4 {
                let uri = number.replace(' ', "-");
                card.add(&format!("TEL;VALUE=uri;TYPE={kind}:tel:{uri}"));
            } else {
                card.add(&format!("TEL;TYPE={kind}:{number}"));
            }
        }
    }
    if random.percent(70) {
        let [city, region, code, country] = random.pick(&CITIES).map(escape);
        let (number, street) = (random.below(180) + 1, random.pick(&STREETS));
        card.add(&format!("ADR;TYPE=home:;;{number} {street};{city};{region};{code};{country}"));
    }
    if random.percent(50) {
        card.add_text("ORG", random.pick(&ORGANIZATIONS));
        card.add_text("TITLE", random.pick(&TITLES));
    }
    if random.percent(40) {
        let (year, month) = (1940 + random.below(70), 1 + random.below(12));
        let day = 1 + random.below(28);
        card.add(&if v4 {
            format!("BDAY:{year}{month:02}{day:02}")
        } else {
            format!("BDAY:{year}-{month:02}-{day:02}")
        });
    }
    if random.percent(80) {
        card.add_text("NOTE", &random.sentences(1, 8));
    }
    if random.percent(15) {
        let image = BASE64.encode(photo(random, 12, 12));
        card.add(&if v4 {
            format!("PHOTO:data:image/png;base64,{image}")
        } else {
            format!("PHOTO;ENCODING=b;TYPE=PNG:{image}")
        });
    }
    card.add(&format!("REV:{}", utc_time(random)));
    card.add("END:VCARD");
    card.0
}

fn open_calendar(random: &mut Random, component: &str, id: &str) -> Lines {
    let mut calendar = Lines::default();
    calendar.add("BEGIN:VCALENDAR");
    calendar.add("VERSION:2.0");
    calendar.add("PRODID:-//Example//Made-up People 1.0//EN");
    calendar.add(&format!("BEGIN:{component}"));
    calendar.add(&format!("UID:{id}"));
    calendar.add(&format!("DTSTAMP:{}", utc_time(random)));
    calendar
}

fn close_calendar(mut calendar: Lines, component: &str) -> Vec<u8> {
    calendar.add(&format!("END:{component}"));
    calendar.add("END:VCALENDAR");
    calendar.0
}

fn event(random: &mut Random, id: &str) -> Vec<u8> {
    let mut calendar = open_calendar(random, "VEVENT", id);
    calendar.add(&format!("DTSTART:{}", utc_time(random)));
    calendar.add(&format!("DURATION:PT{}M", 30 * (1 + random.below(6))));
    calendar.add_text("SUMMARY", &random.phrase(&SUMMARIES));
    if random.percent(60) {
        let [city, ..] = random.pick(&CITIES);
        let (number, street) = (random.below(180) + 1, random.pick(&STREETS));
        calendar.add_text("LOCATION", &format!("{street} {number}, {city}"));
    }
    calendar.add_text("DESCRIPTION", &random.sentences(1, 10));
    if random.percent(40) {
        let organizer = name(random);
        calendar.add(&format!("ORGANIZER:mailto:{}", email(random, organizer)));
        for _ in 0..=random.below(4) {
            let guest = name(random);
            let shown = format!("{} {}", guest.0.0, guest.1.0);
            let address = email(random, guest);
            calendar.add(&format!("ATTENDEE;CN=\"{shown}\";PARTSTAT=NEEDS-ACTION;RSVP=TRUE:mailto:{address}"));
        }
    }
    if random.percent(25) {
        let frequency = random.pick(&["DAILY", "WEEKLY", "MONTHLY", "YEARLY"]);
        let count = 2 + random.below(20);
        calendar.add(&format!("RRULE:FREQ={frequency};COUNT={count}"));
    }
    if random.percent(40) {
        calendar.add("BEGIN:VALARM");
        calendar.add("ACTION:DISPLAY");
        calendar.add("DESCRIPTION:Reminder");
        calendar.add("TRIGGER:-PT15M");
        calendar.add("END:VALARM");
    }
    close_calendar(calendar, "VEVENT")
}

fn todo(random: &mut Random, id: &str) -> Vec<u8> {
    let mut calendar = open_calendar(random, "VTODO", id);
    calendar.add_text("SUMMARY", &random.phrase(&TASKS));
    calendar.add(&format!("DUE:{}", utc_time(random)));
    calendar.add(&format!("PRIORITY:{}", 1 + random.below(9)));
    if random.percent(30) {
        calendar.add("STATUS:COMPLETED");
        calendar.add(&format!("COMPLETED:{}", utc_time(random)));
        calendar.add("PERCENT-COMPLETE:100");
    } else {
        calendar.add("STATUS:NEEDS-ACTION");
    }
    calendar.add_text("DESCRIPTION", &random.sentences(1, 6));
    close_calendar(calendar, "VTODO")
}

fn note(random: &mut Random) -> Vec<u8> {
    let mut text = random.phrase(&TASKS);
    for _ in 0..=random.below(5) {
        text.push_str("\n\n");
        text.push_str(&random.sentences(3, 9));
    }
    text.push('\n');
    text.into_bytes()
}

/// A square-ish PNG of `least` to `most` pixels a side: a colour gradient with
/// some noise.
fn photo(random: &mut Random, least: u8, most: u8) -> Vec<u8> {
    let spread = u64::from(most.saturating_sub(least)) + 1;
    let side = |random: &mut Random| least.saturating_add(u8::try_from(random.below(spread)).unwrap_or(0));
    let (width, height) = (side(random), side(random));
    let base: [u8; 3] = std::array::from_fn(|_| random.byte());
    let mut rgb = Vec::new();
    for row in 0..height {
        for column in 0..width {
            let noise = random.byte() % 16;
            let shades = [row, column, row.wrapping_add(column)];
            rgb.extend(
                base.iter()
                    .zip(shades)
                    .map(|(colour, shade)| colour.wrapping_add(shade.wrapping_mul(2)).wrapping_add(noise)),
            );
        }
    }
    png::encode(width, height, &rgb)
}
