//! A message's life for somebody who reads it at three in the morning.

use std::fmt::Write as _;
use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use jiff::{SignedDuration, Timestamp};

use super::{Story, Told, Traced, more};

/// Where lines are broken for a pipe.
pub(super) const WIDTH: usize = 100;
const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// Writes all of it; how many more there are comes last, where the eye is.
pub(super) fn write(out: &mut impl Write, traced: &Traced, relays: &[&str], width: usize) -> io::Result<()> {
    let out = &mut Page { out, width };
    for (number, story) in traced.stories.iter().enumerate() {
        if number > 0 {
            writeln!(out)?;
        }
        write_story(out, story, relays, 0)?;
    }
    if traced.more > 0 {
        wrapped(out, &format!("\n{}", more(traced)), 0, 0, DIM)?;
    }
    Ok(())
}

/// Where it is written, and how wide that is.
struct Page<'o> {
    out: &'o mut dyn Write,
    width: usize,
}

impl Write for Page<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn write_story(out: &mut Page<'_>, story: &Story, relays: &[&str], indent: usize) -> io::Result<()> {
    let several = relays.len() > 1;
    let title = match (indent, story.message_id()) {
        (0, Some(message_id)) => message_id.to_owned(),
        (0, None) if story.ids().is_empty() => "refused before there was a message".to_owned(),
        (0, None) => "a message without Message-ID".to_owned(),
        (_, Some(message_id)) => format!("report {message_id}"),
        (_, None) => "report".to_owned(),
    };
    wrapped(out, &title, indent, indent + 4, BOLD)?;
    let mut what = format!("from {}", story.from().unwrap_or("an unknown sender"));
    // Writing to a String cannot fail.
    let _ = write!(what, " to {}", list(&story.to()));
    wrapped(out, &what, indent + 2, indent + 6, Style::new())?;
    let ids: Vec<String> = story
        .ids()
        .into_iter()
        .map(|(relay, id)| if several { format!("id {id} on {}", relays[relay]) } else { format!("id {id}") })
        .collect();
    let what: Vec<String> = story.size().map(size).into_iter().chain(ids).collect();
    if !what.is_empty() {
        wrapped(out, &what.join(", "), indent + 2, indent + 6, Style::new())?;
    }
    writeln!(out)?;
    let begin = story.begin().unwrap_or_default();
    for told in &story.events {
        write_event(out, told, begin, several.then(|| relays[told.relay]), indent)?;
    }
    if story.omitted > 0 {
        wrapped(out, &format!("{} more events are not shown", story.omitted), indent + 2, indent + 2, DIM)?;
    }
    for report in &story.reports {
        writeln!(out)?;
        write_story(out, report, relays, indent + 4)?;
    }
    Ok(())
}

fn write_event(
    out: &mut Page<'_>,
    told: &Told,
    begin: Timestamp,
    relay: Option<&str>,
    indent: usize,
) -> io::Result<()> {
    let record = &told.record;
    let style = match record.event.as_str() {
        "SEND" => AnsiColor::Green.on_default(),
        "DEFER" => AnsiColor::Yellow.on_default(),
        "FAIL" | "DROP" | "POISON" => AnsiColor::Red.on_default(),
        _ => Style::new(),
    }
    .bold();
    let text = |value: &Option<String>| value.as_deref().map(clean);
    let mut way = Vec::new();
    way.extend(text(&record.status));
    way.extend(relay.map(|relay| format!("on {relay}")));
    // A message that was refused has no number yet: its connector and peer are those that it came by.
    let received = record.event == "RECEIVE" || record.id.is_none();
    way.extend(text(&record.connector).map(|name| format!("{} {name}", if received { "by" } else { "via" })));
    way.extend(text(&record.peer).map(|peer| format!("{} {peer}", if received { "from" } else { "at" })));
    way.extend(text(&record.tls));
    let time = format!("{:.3}", told.time).replace('T', " ");
    let lead = format!("{:indent$}  {time}  {:>8}  ", "", relative(told.time.duration_since(begin)), indent = indent);
    // The name of the event is coloured, so it is written by itself; the rest hangs below it.
    let event = clean(&record.event);
    let hang = indent + 8;
    write!(out, "{lead}{style}{event:<8}{style:#}")?;
    let used = lead.chars().count() + event.chars().count().max(8);
    let rest = way.join(", ");
    continued(out, &rest, used + 1, hang)?;
    let mut line = |text: &str| wrapped(out, text, hang, hang + 2, Style::new());
    if !record.to.is_empty() {
        line(&format!("to {}", list(&record.to.iter().map(String::as_str).collect::<Vec<_>>())))?;
    }
    for reason in &record.because {
        line(&clean(reason))?;
    }
    if let Some(detail) = text(&record.detail) {
        line(&detail)?;
    }
    Ok(())
}

/// Addresses, as many as one wants to see.
fn list(all: &[&str]) -> String {
    const SHOWN: usize = 20;
    let mut text: Vec<String> = all.iter().take(SHOWN).map(|one| clean(one)).collect();
    if all.len() > SHOWN {
        text.push(format!("and {} more", all.len() - SHOWN));
    }
    if text.is_empty() { "nobody".to_owned() } else { text.join(", ") }
}

/// Values come from strangers: nothing in them may act on the terminal. S-093.
fn clean(text: &str) -> String {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.chars()
        .flat_map(|c| {
            let shown: Box<dyn Iterator<Item = char>> = match c {
                '\n' => Box::new(std::iter::once(' ')),
                '\r' => Box::new(std::iter::empty()),
                c if harmful(c) => Box::new(c.escape_unicode()),
                c => Box::new(std::iter::once(c)),
            };
            shown
        })
        .collect()
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} bytes"),
        1024..1_048_576 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

/// The time since the first event: `+0.345s`, `+4m05s`, `+2h03m`, `+1d04h`.
fn relative(since: SignedDuration) -> String {
    let seconds = since.as_secs();
    match seconds {
        _ if since.is_negative() => format!("{:.3}s", since.as_secs_f64()),
        0..60 => format!("+{:.3}s", since.as_secs_f64()),
        60..3600 => format!("+{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("+{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("+{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// Writes `text` in lines that fit the page, the first behind `indent`, the others behind `hang`.
fn wrapped(out: &mut Page<'_>, text: &str, indent: usize, hang: usize, style: Style) -> io::Result<()> {
    let text = match text.strip_prefix('\n') {
        Some(text) => {
            writeln!(out)?;
            text
        }
        None => text,
    };
    for (number, line) in
        broken(&clean(text), out.width.saturating_sub(indent), out.width.saturating_sub(hang)).into_iter().enumerate()
    {
        writeln!(out, "{:indent$}{style}{line}{style:#}", "", indent = if number == 0 { indent } else { hang })?;
    }
    Ok(())
}

/// The same where a line is begun already: `used` of its columns.
fn continued(out: &mut Page<'_>, text: &str, used: usize, hang: usize) -> io::Result<()> {
    if text.is_empty() {
        return writeln!(out);
    }
    for (number, line) in
        broken(text, out.width.saturating_sub(used), out.width.saturating_sub(hang)).into_iter().enumerate()
    {
        match (number, line.is_empty()) {
            (0, true) => writeln!(out)?,
            (0, false) => writeln!(out, " {line}")?,
            _ => writeln!(out, "{:hang$}{line}", "")?,
        }
    }
    Ok(())
}

/// Breaks at blanks; a word that is longer than a line stays whole, so that it can be copied. The first line is empty
/// where only the others have room for the first word.
fn broken(text: &str, first: usize, others: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let (mut line, mut used, mut room) = (String::new(), 0, first);
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let length = word.chars().count();
        let fits =
            if used == 0 { length <= room || !lines.is_empty() || others <= first } else { used + 1 + length <= room };
        if !fits {
            lines.push(std::mem::take(&mut line));
            (used, room) = (0, others);
        }
        if used > 0 {
            line.push(' ');
            used += 1;
        }
        line.push_str(word);
        used += length;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_at_blanks() {
        for (text, first, others, expected) in [
            ("one two three", 20, 20, vec!["one two three"]),
            ("one two three", 7, 7, vec!["one two", "three"]),
            ("one two three", 6, 9, vec!["one", "two three"]),
            ("one two", 2, 9, vec!["", "one two"]),
            ("unbreakable", 5, 5, vec!["unbreakable"]),
            ("a unbreakable b", 5, 5, vec!["a", "unbreakable", "b"]),
            ("", 5, 5, vec![""]),
        ] {
            assert_eq!(broken(text, first, others), expected, "{text} {first} {others}");
        }
    }

    #[test]
    fn times_since_the_beginning() {
        for (millis, expected) in [
            (0, "+0.000s"),
            (345, "+0.345s"),
            (59_999, "+59.999s"),
            (60_000, "+1m00s"),
            (3_599_000, "+59m59s"),
            (7_380_000, "+2h03m"),
            (100_800_000, "+1d04h"),
            (-20, "-0.020s"),
        ] {
            assert_eq!(relative(SignedDuration::from_millis(millis)), expected);
        }
    }

    /// S-093.
    #[test]
    fn s093_nothing_acts_on_the_terminal() {
        assert_eq!(clean("a\u{1b}[31mb\r\nc\u{202e}d\u{9b}e \u{fc}"), "a\\u{1b}[31mb c\\u{202e}d\\u{9b}e \u{fc}");
    }
}
