//! The least of HTML: text that cannot break out of it, and words for numbers.

use std::fmt::Write;

/// Text as HTML and in attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// The first characters of a text, and a sign that there are more.
pub(super) fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(most.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// A duration in nanoseconds, with three digits at most.
pub(super) fn duration(nanoseconds: u64) -> String {
    let n = nanoseconds as f64;
    match nanoseconds {
        0..=999 => format!("{nanoseconds} ns"),
        1_000..=999_999 => format!("{} µs", digits(n / 1e3)),
        1_000_000..=999_999_999 => format!("{} ms", digits(n / 1e6)),
        1_000_000_000..=119_999_999_999 => format!("{} s", digits(n / 1e9)),
        _ => clock(nanoseconds),
    }
}

fn digits(n: f64) -> String {
    let text = if n < 10.0 {
        format!("{n:.2}")
    } else if n < 100.0 {
        format!("{n:.1}")
    } else {
        format!("{n:.0}")
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A long time: hours, minutes, seconds.
pub(super) fn clock(nanoseconds: u64) -> String {
    let all = nanoseconds / 1_000_000_000;
    let (hours, minutes, seconds) = (all / 3600, all / 60 % 60, all % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// A number with its thousands apart.
pub(super) fn thousands(n: u64) -> String {
    let text = n.to_string();
    let mut out = String::new();
    for (at, digit) in text.chars().enumerate() {
        if at > 0 && (text.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A caption with what its colours mean.
pub(super) fn legend(out: &mut String, items: &[(&str, String)]) {
    out.push_str("<div class=legend>");
    for (class, text) in items {
        let colour = class.split(' ').next().unwrap_or_default();
        let shape = if class.contains("dash") {
            "dash"
        } else if class.contains("line") {
            ""
        } else {
            "box"
        };
        let _ = write!(out, "<span><i class=\"{shape}\" style=\"color:var(--{colour})\"></i>{}</span>", escape(text));
    }
    out.push_str("</div>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_out() {
        assert_eq!(escape("<script>'\"&\u{1}"), "&lt;script&gt;&#39;&quot;&amp;\u{fffd}");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(
            [999, 1_500, 12_345_678, 100_000_000, 3_600_000_000_000].map(duration),
            ["999 ns", "1.5 µs", "12.3 ms", "100 ms", "1:00:00"]
        );
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(short("abcdef", 4), "abc…");
    }
}
