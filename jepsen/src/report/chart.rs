//! Charts over the time of a run, all with the same axis, so that one can be held against the other; faults are shaded.

use std::fmt::Write;

use super::html::{clock, duration, escape, short};
use crate::run::{Fault, Run};

/// Space at the left, for what the rows and numbers mean.
pub(super) const LEFT: f64 = 96.0;
const RIGHT: f64 = 26.0;
/// A character's width, nearly.
const CHARACTER: f64 = 6.2;

/// The time axis of a chart.
#[derive(Clone, Copy)]
pub(super) struct Axis {
    /// All of the chart's width.
    pub(super) width: f64,
    /// The run's end, nanoseconds.
    pub(super) end: u64,
}

impl Axis {
    pub(super) fn new(run: &Run, width: f64) -> Self {
        let ops = run.history.0.last().map_or(0, |op| op.time);
        let samples = run.samples.last().map_or(0, |sample| sample.answered);
        let faults = run.faults.iter().filter_map(|fault| fault.until).max().unwrap_or(0);
        Self { width, end: run.duration.max(ops).max(samples).max(faults).max(1) }
    }

    pub(super) fn x(&self, time: u64) -> f64 {
        LEFT + (self.width - LEFT - RIGHT) * (time.min(self.end) as f64 / self.end as f64)
    }

    /// Ticks that a person would choose.
    fn ticks(&self) -> Vec<u64> {
        const STEPS: &[u64] =
            &[1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200, 14_400, 43_200, 86_400];
        let seconds = self.end / 1_000_000_000;
        let most = if self.width < 700.0 { 6 } else { 12 };
        let step = STEPS.iter().find(|step| seconds / **step <= most).copied().unwrap_or(seconds.max(1) / most);
        (0..=seconds / step).map(|at| at * step * 1_000_000_000).collect()
    }

    /// The axis below a chart.
    pub(super) fn draw(&self, svg: &mut String, top: f64, bottom: f64) {
        for tick in self.ticks() {
            let x = self.x(tick);
            let _ = write!(svg, "<path class=axis d=\"M{x:.1} {top:.1}V{:.1}\"/>", bottom + 4.0);
            let _ =
                write!(svg, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=middle>{}</text>", bottom + 17.0, clock(tick));
        }
    }

    /// Faults as shades behind a chart.
    pub(super) fn shade(&self, svg: &mut String, faults: &[Fault], top: f64, bottom: f64) {
        for fault in faults {
            let (from, until) = self.span(fault);
            let title = escape(&fault_title(fault));
            let (width, height) = (until - from, bottom - top);
            let _ = write!(
                svg,
                "<rect class=fault x=\"{from:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"><title>{title}</title></rect>"
            );
        }
    }

    /// From where to where a fault lasts; what is over at once is still seen.
    pub(super) fn span(&self, fault: &Fault) -> (f64, f64) {
        let (from, until) = (self.x(fault.from), self.x(fault.until.unwrap_or(self.end)));
        (from, until.max(from + 1.5))
    }

    /// Faults as labelled bars, one over the other where they overlap; gives the height that took.
    pub(super) fn faults(&self, svg: &mut String, faults: &[Fault], top: f64) -> f64 {
        const MOST: usize = 8;
        const ROW: f64 = 17.0;
        let mut rows: Vec<f64> = Vec::new();
        for fault in faults {
            let (from, until) = self.span(fault);
            let free = rows.iter().position(|end| *end <= from);
            let row = free.unwrap_or(rows.len().min(MOST - 1));
            let label = if fault.sites.is_empty() {
                fault.name.clone()
            } else {
                format!("{} {}", fault.name, fault.sites.join(" "))
            };
            let room = ((self.width - RIGHT - until) / CHARACTER).max(0.0);
            let beside = label.chars().count().min(22) as f64;
            // A label stands beside its bar, unless that would reach into the next one's row for long.
            let (shown, end) = if beside <= room && faults.len() <= 40 {
                (true, until + 6.0 + beside * CHARACTER)
            } else {
                (false, until + 1.0)
            };
            match rows.get_mut(row) {
                Some(last) => *last = end.max(*last),
                None => rows.push(end),
            }
            let y = top + row as f64 * ROW;
            let title = escape(&fault_title(fault));
            let _ = write!(
                svg,
                "<rect class=bar x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"11\" rx=\"2\"><title>{title}</title></rect>",
                y + 2.0,
                until - from
            );
            if shown {
                let text = escape(&short(&label, 22));
                let _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\">{text}</text>", until + 4.0, y + 11.5);
            }
        }
        rows.len() as f64 * ROW
    }
}

/// What a fault was, in a line.
pub(super) fn fault_title(fault: &Fault) -> String {
    let until = fault.until.map_or_else(|| "the end".to_owned(), clock);
    let sites = if fault.sites.is_empty() { "all sites".to_owned() } else { fault.sites.join(", ") };
    format!("{} ({sites}), {} to {until}. {}", fault.name, clock(fault.from), fault.detail)
}

/// Points of one line: time and value.
pub(super) struct Series {
    /// Its colour's class, and `dash` if it is dashed.
    pub(super) class: String,
    /// The points, by time; a gap where there is none.
    pub(super) points: Vec<(u64, Option<f64>)>,
}

/// How values are laid out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// From 0.
    Linear,
    /// Nanoseconds, by powers of ten.
    Log,
}

/// A chart of lines over time.
pub(super) fn lines(run: &Run, width: f64, height: f64, scale: Scale, title: &str, series: &[Series]) -> String {
    let axis = Axis::new(run, width);
    let (top, bottom) = (if title.is_empty() { 8.0 } else { 22.0 }, height - 22.0);
    let values = series.iter().flat_map(|series| series.points.iter().filter_map(|(_, value)| *value));
    let (low, high) = values.fold((f64::MAX, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    let (low, high) = match scale {
        Scale::Linear => (0.0, if high > 0.0 { high * 1.05 } else { 1.0 }),
        Scale::Log => {
            let low = 10_f64.powf(low.clamp(1e3, 1e9).log10().floor());
            (low, 10_f64.powf(high.max(low * 1.01).log10().ceil()))
        }
    };
    let y = |value: f64| {
        let share = match scale {
            Scale::Linear => (value - low) / (high - low),
            Scale::Log => (value.max(low) / low).log10() / (high / low).log10(),
        };
        bottom - (bottom - top) * share.clamp(0.0, 1.0)
    };
    let mut svg = format!("<svg viewBox=\"0 0 {width} {height}\" role=img aria-label=\"{}\">", escape(title));
    if !title.is_empty() {
        let _ = write!(svg, "<text class=strong x=\"{LEFT}\" y=\"14\">{}</text>", escape(&short(title, 60)));
    }
    axis.shade(&mut svg, &run.faults, top, bottom);
    axis.draw(&mut svg, top, bottom);
    for (value, label) in ticks(scale, low, high) {
        let y = y(value);
        let _ = write!(svg, "<path class=axis d=\"M{LEFT} {y:.1}H{:.1}\"/>", width - RIGHT);
        let _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=end>{label}</text>", LEFT - 6.0, y + 4.0);
    }
    for series in series {
        let mut path = String::new();
        let (mut pen, mut alone) = (false, None);
        for (time, value) in &series.points {
            match value {
                Some(value) => {
                    let (x, y) = (axis.x(*time), y(*value));
                    let _ = write!(path, "{}{x:.1} {y:.1}", if pen { "L" } else { "M" });
                    alone = (!pen).then_some(());
                    pen = true;
                }
                None => {
                    // A point without neighbours is still seen.
                    path.push_str(if alone.take().is_some() { "h1.5" } else { "" });
                    pen = false;
                }
            }
        }
        path.push_str(if alone.is_some() { "h1.5" } else { "" });
        let (colour, dash) = series.class.split_once(' ').unwrap_or((&series.class, ""));
        let _ = write!(svg, "<path class=\"series {dash}\" style=\"stroke:var(--{colour})\" d=\"{path}\"/>");
    }
    svg.push_str("</svg>");
    svg
}

fn ticks(scale: Scale, low: f64, high: f64) -> Vec<(f64, String)> {
    match scale {
        Scale::Log => {
            let mut ticks = Vec::new();
            let mut at = low;
            while at <= high * 1.001 {
                let label = [
                    (1e3, "1 µs"),
                    (1e4, "10 µs"),
                    (1e5, "100 µs"),
                    (1e6, "1 ms"),
                    (1e7, "10 ms"),
                    (1e8, "100 ms"),
                    (1e9, "1 s"),
                    (1e10, "10 s"),
                    (1e11, "100 s"),
                ];
                let label =
                    label.iter().find(|(value, _)| (value / at - 1.0).abs() < 0.01).map_or("", |(_, label)| label);
                ticks.push((at, label.to_owned()));
                at *= 10.0;
            }
            ticks
        }
        Scale::Linear => {
            let rough = high / 4.0;
            let ten = 10_f64.powf(rough.log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0].iter().map(|n| n * ten).find(|step| *step >= rough).unwrap_or(rough);
            let label = |value: f64| {
                if value >= 1e6 {
                    format!("{}M", value / 1e6)
                } else if value >= 1e4 {
                    format!("{}k", value / 1e3)
                } else {
                    format!("{}", (value * 100.0).round() / 100.0)
                }
            };
            (0..6)
                .map(|n| f64::from(n) * step)
                .filter(|value| *value <= high)
                .map(|value| (value, label(value)))
                .collect()
        }
    }
}

/// Into how many parts time is cut.
pub(super) const BINS: usize = 100;

/// In which part of the run a time lies.
pub(super) fn bin(time: u64, end: u64) -> usize {
    let bins = u128::try_from(BINS).unwrap_or(1);
    let at = u128::from(time.min(end)) * bins / u128::from(end.max(1));
    usize::try_from(at).unwrap_or(0).min(BINS - 1)
}

/// The middle of a part.
pub(super) fn middle(bin: usize, end: u64) -> u64 {
    let (bins, bin) = (u128::try_from(BINS).unwrap_or(1), u128::try_from(bin).unwrap_or(0));
    u64::try_from(u128::from(end) * (2 * bin + 1) / (2 * bins)).unwrap_or(end)
}

/// The colour of the n-th of several.
pub(super) fn colour(n: usize) -> &'static str {
    const COLOURS: [&str; 8] = ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7"];
    COLOURS[n % COLOURS.len()]
}

/// A latency for tables.
pub(super) fn cell(latency: Option<u64>) -> String {
    latency.map_or_else(|| "–".to_owned(), duration)
}
