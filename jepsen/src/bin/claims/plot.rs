//! The picture: small multiples, utilisation across and skew down, one line a design. Drawn by hand as SVG: nine panels of
//! three lines are less than a plotting library's settings.

use std::fmt::Write;
use std::path::Path;

use crate::load::Cut;
use crate::refusals::{Design, Results, SKEWS, UTILISATIONS};
use jepsen::parts::Fallible;

const PANEL: (f64, f64) = (250.0, 150.0);
const GAP: (f64, f64) = (34.0, 40.0);
const LEFT: f64 = 92.0;
const TOP: f64 = 104.0;
const BOTTOM: f64 = 62.0;
/// Where the curves are read, minutes of cut.
const MINUTES: [f64; 9] = [0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0, 60.0];
const X_TICKS: [f64; 6] = [0.5, 2.0, 5.0, 10.0, 30.0, 60.0];
/// Percent. What is below the lowest is drawn on the axis.
const Y_TICKS: [(f64, &str); 5] = [(0.01, "&lt; 0.01"), (0.1, "0.1"), (1.0, "1"), (10.0, "10"), (100.0, "100")];

/// Writes the picture.
pub(crate) fn write(results: &Results, path: &Path) -> Fallible<()> {
    std::fs::write(path, draw(results)?)?;
    println!("\nthe picture is in {}", path.display());
    Ok(())
}

fn draw(results: &Results) -> Result<String, std::fmt::Error> {
    let (columns, rows) = (UTILISATIONS.len() as f64, SKEWS.len() as f64);
    let width = LEFT + columns * PANEL.0 + (columns - 1.0) * GAP.0 + 96.0;
    let height = TOP + rows * PANEL.1 + (rows - 1.0) * GAP.1 + BOTTOM;
    let mut svg = String::new();
    writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#222">
<rect width="{width}" height="{height}" fill="#fff"/>
<text x="{LEFT}" y="26" font-size="17" font-weight="bold">Requests refused though a right was free at some site</text>
<text x="{LEFT}" y="45" fill="#555">8 sites, 50 ms apart, share one quota of 800 servers; the cloud is cut into two halves. Servers live 10 minutes on average.</text>"##
    )?;
    legend(&mut svg)?;
    for (row, skew) in SKEWS.iter().enumerate() {
        for (column, utilisation) in UTILISATIONS.iter().enumerate() {
            let x = LEFT + column as f64 * (PANEL.0 + GAP.0);
            let y = TOP + row as f64 * (PANEL.1 + GAP.1);
            panel(&mut svg, (x, y), column == 0)?;
            if row == 0 {
                let middle = x + PANEL.0 / 2.0;
                let of = utilisation * 100.0;
                writeln!(
                    svg,
                    r#"<text x="{middle}" y="{}" text-anchor="middle" font-weight="bold">{of:.0} % of the quota in use</text>"#,
                    y - 10.0
                )?;
            }
            for design in Design::ALL {
                curve(&mut svg, results, (*utilisation, *skew, design), (x, y))?;
            }
        }
        let (x, y) = (LEFT + columns * (PANEL.0 + GAP.0) - GAP.0 + 12.0, TOP + row as f64 * (PANEL.1 + GAP.1) + 62.0);
        let words = match row {
            0 => ["load even", "over sites", "(s = 0)"],
            1 => ["load goes", "with 1/√k", "(s = 0.5)"],
            _ => ["load goes", "with 1/k", "(s = 1)"],
        };
        for (n, word) in words.iter().enumerate() {
            let y = y + 16.0 * n as f64;
            writeln!(svg, r#"<text x="{x}" y="{y}" font-weight="bold">{word}</text>"#)?;
        }
    }
    let (middle, bottom) = (LEFT + (width - LEFT - 96.0) / 2.0, height - 14.0);
    writeln!(
        svg,
        r#"<text x="{middle}" y="{bottom}" text-anchor="middle">length of the cut, minutes (logarithmic)</text>"#
    )?;
    let middle = TOP + (height - TOP - BOTTOM) / 2.0;
    writeln!(
        svg,
        r#"<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">refused in vain while it lasts, % of requests (logarithmic)</text>"#
    )?;
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn legend(svg: &mut String) -> std::fmt::Result {
    let mut x = LEFT;
    for design in Design::ALL {
        let (colour, dash, mark) = style(design);
        writeln!(
            svg,
            r#"<path d="M{x} 64h34" stroke="{colour}" stroke-width="2.4" stroke-dasharray="{dash}" fill="none"/>"#
        )?;
        marker(svg, mark, (x + 17.0, 64.0), colour)?;
        writeln!(svg, r#"<text x="{}" y="68">{}</text>"#, x + 42.0, design.name())?;
        x += 66.0 + 6.4 * design.name().len() as f64;
    }
    Ok(())
}

/// Colours that the colour-blind tell apart, and marks for who prints without colour.
fn style(design: Design) -> (&'static str, &'static str, char) {
    match design {
        Design::Escrow => ("#0072b2", "none", 'o'),
        Design::EqualShares => ("#e69f00", "7 3", 's'),
        Design::CentralCounter => ("#b4436c", "2 3", 't'),
    }
}

fn marker(svg: &mut String, mark: char, (x, y): (f64, f64), colour: &str) -> std::fmt::Result {
    match mark {
        'o' => writeln!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.2" fill="{colour}"/>"#),
        's' => writeln!(svg, r#"<rect x="{:.1}" y="{:.1}" width="6" height="6" fill="{colour}"/>"#, x - 3.0, y - 3.0),
        _ => writeln!(svg, r#"<path d="M{x:.1} {:.1}l3.8 6.6h-7.6z" fill="{colour}"/>"#, y - 4.0),
    }
}

fn across(minutes: f64) -> f64 {
    let (from, to) = (0.45_f64.ln(), 66.0_f64.ln());
    (minutes.ln() - from) / (to - from) * PANEL.0
}

fn up(percent: f64) -> f64 {
    let (from, to) = (0.01_f64.ln(), 100.0_f64.ln());
    PANEL.1 - (percent.max(0.01).ln() - from) / (to - from) * PANEL.1
}

fn panel(svg: &mut String, (x, y): (f64, f64), first_column: bool) -> std::fmt::Result {
    writeln!(
        svg,
        r##"<rect x="{x}" y="{y}" width="{}" height="{}" fill="#fafafa" stroke="#999"/>"##,
        PANEL.0, PANEL.1
    )?;
    for (percent, words) in Y_TICKS {
        let at = y + up(percent);
        writeln!(svg, r##"<path d="M{x} {at:.1}h{}" stroke="#ddd"/>"##, PANEL.0)?;
        if first_column {
            writeln!(svg, r#"<text x="{}" y="{:.1}" text-anchor="end">{words} %</text>"#, x - 7.0, at + 4.0)?;
        }
    }
    for minutes in X_TICKS {
        let (at, bottom) = (x + across(minutes), y + PANEL.1);
        writeln!(svg, r##"<path d="M{at:.1} {bottom}v4" stroke="#999"/>"##)?;
        writeln!(
            svg,
            r#"<text x="{at:.1}" y="{}" text-anchor="middle" font-size="11">{minutes}</text>"#,
            bottom + 17.0
        )?;
    }
    Ok(())
}

fn curve(
    svg: &mut String,
    results: &Results,
    (utilisation, skew, design): (f64, f64, Design),
    (x, y): (f64, f64),
) -> std::fmt::Result {
    let Some(tally) = results.of(utilisation, skew, Cut::Halves, design) else { return Ok(()) };
    let (colour, dash, mark) = style(design);
    let seconds = |minutes: f64| (minutes * 60.0) as u64;
    let points = MINUTES.map(|m| (x + across(m), y + up(tally.first(seconds(m)).false_refusals())));
    let line: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let line = line.join(" ");
    writeln!(
        svg,
        r#"<polyline points="{line}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}" fill="none"/>"#
    )?;
    points.iter().try_for_each(|at| marker(svg, mark, *at, colour))
}
