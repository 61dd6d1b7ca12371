//! The memory view: bytes, instructions or a page walk, and a line that tells of the cursor. See [`crate::ui::memory`].

use ratatui::{
    layout::Rect,
    style::{Modifier, Style},
    text::{Line, Span},
};

use super::{Desk, rest, sheet::Sheet, walk};
use crate::{
    engine::snapshot::{CodeLine, Detail, MemoryDetail, Scope, Snapshot, Va},
    ui::{
        format,
        memory::{self, CodeRow, Shape},
        panes::breakpoint_glyph,
        pen::{Pen, width, wrap},
        state::{MemoryMode, MemoryView, UiState},
    },
};

/// How long a byte that changed is shown as one that changes.
const RECENT_NS: u64 = 3_000_000_000;
/// How far behind a symbol an address is still named after it.
const SYMBOL_REACH: u64 = 0x10_0000;

pub(super) fn draw(pen: &mut Pen<'_>, snapshot: &Snapshot, ui: &UiState, view: &MemoryView) {
    let area = memory::area(ui);
    if area.is_empty() {
        return;
    }
    let theme = pen.theme;
    pen.clear(area, theme.popup);
    let inside = memory::inside(area);
    if inside != area {
        pen.frame(area, theme.popup_border);
        title(pen, area, snapshot, view);
    }
    let body = memory::body(area);
    let held = memory::held(snapshot, view);
    match (view.mode, held, snapshot.detail.as_deref()) {
        (_, None, Some(Detail::Gone(why))) => sentence(pen, body, why, theme.missing),
        (MemoryMode::Walk, Some(memory), _) if memory.va == view.cursor => page_walk(pen, body, snapshot, ui, view),
        (MemoryMode::Bytes, Some(memory), _) => bytes(pen, body, snapshot, view, memory),
        (MemoryMode::Code, Some(memory), _) => code(pen, body, snapshot, ui, view, memory),
        _ if ui.past.is_some() => {
            sentence(
                pen,
                body,
                "Memory is read from the guest as it is now; it comes with the next look.",
                theme.muted,
            );
        }
        _ => sentence(pen, body, "Reading it from the guest.", theme.muted),
    }
    if body.height < inside.height {
        let line = Rect { y: body.bottom(), height: 1, ..inside };
        pen.tint(line, theme.header);
        told(pen, line, snapshot, view, held);
    }
}

fn sentence(pen: &mut Pen<'_>, body: Rect, text: &str, style: Style) {
    let text = wrap(text, body.width.saturating_sub(2).max(1));
    for (y, line) in (body.top()..body.bottom()).zip(&text) {
        pen.text(rest(Rect { y, height: 1, ..body }, 1), line, style);
    }
}

/// Whose memory it is, and the ways to show it.
fn title(pen: &mut Pen<'_>, area: Rect, snapshot: &Snapshot, view: &MemoryView) {
    let theme = pen.theme;
    let bar = Rect { x: area.x + 1, width: area.width - 2, height: 1, ..area };
    let name = |pid: u32| snapshot.processes.iter().find(|process| process.pid == pid).map(|process| &process.name);
    let owner = match view.pid {
        None => "the kernel".to_owned(),
        Some(pid) => name(pid).map_or_else(|| format!("process {pid}"), |name| format!("{name} {pid}")),
    };
    let used = pen.text(bar, &format!(" Memory of {owner} "), theme.popup_title);
    let spans = MemoryMode::ALL.into_iter().map(|mode| {
        if mode == view.mode {
            Span::styled(format!("[{}]", mode.word()), theme.key)
        } else {
            Span::styled(format!(" {} ", mode.word()), theme.muted)
        }
    });
    let mut spans: Vec<Span<'_>> = spans.collect();
    let needed = |spans: &[Span<'_>]| spans.iter().map(|span| width(&span.content)).sum::<u16>() + 2;
    if needed(&spans) > bar.width.saturating_sub(used) {
        spans.retain(|span| span.content.starts_with('['));
    }
    let needed = needed(&spans);
    if needed <= bar.width.saturating_sub(used) {
        let right = rest(bar, bar.width - needed);
        spans.insert(0, Span::raw(" "));
        spans.push(Span::raw(" "));
        pen.line(right, &Line::from(spans));
    }
}

/// An address in the cells that a row has for it.
fn address(va: Va, cells: u16) -> String {
    if cells < 17 { format!("`{:08x}", va.0 & 0xffff_ffff) } else { format::Address(va.0).to_string() }
}

/// How a byte is shown besides its value.
struct Looks<'a> {
    snapshot: &'a Snapshot,
    view: &'a MemoryView,
    memory: &'a MemoryDetail,
    longest: u64,
}

impl<'a> Looks<'a> {
    fn new(snapshot: &'a Snapshot, view: &'a MemoryView, memory: &'a MemoryDetail) -> Self {
        let longest = view.search.iter().flat_map(|found| &found.patterns).map(Vec::len).max().unwrap_or(0);
        Self { snapshot, view, memory, longest: longest as u64 }
    }

    fn changed_at(&self, va: Va) -> Option<u64> {
        let nth = usize::try_from(va - self.memory.va).ok()?;
        self.memory.changed.get(nth).copied().flatten()
    }

    fn just_changed(&self, va: Va) -> bool {
        self.changed_at(va).is_some_and(|at| self.snapshot.taken_at_ns.saturating_sub(at) <= RECENT_NS)
    }

    /// Whether a match begins at most its own length before.
    fn matches(&self, va: Va) -> bool {
        let Some(found) = &self.view.search else { return false };
        let next = found.places.partition_point(|place| *place <= va);
        next.checked_sub(1).and_then(|last| found.places.get(last)).is_some_and(|place| va - *place < self.longest)
    }

    /// The style of a byte: what changed is never told by its colour alone.
    fn style(&self, pen: &Pen<'_>, va: Va, plain: Style) -> Style {
        if self.just_changed(va) {
            pen.theme.changed.add_modifier(Modifier::BOLD | Modifier::UNDERLINED)
        } else if self.matches(va) {
            plain.patch(pen.theme.matched)
        } else if self.changed_at(va).is_some() {
            plain.add_modifier(Modifier::UNDERLINED)
        } else {
            plain
        }
    }
}

fn bytes(pen: &mut Pen<'_>, body: Rect, snapshot: &Snapshot, view: &MemoryView, memory: &MemoryDetail) {
    let shape = Shape::of(body.width);
    let looks = Looks::new(snapshot, view, memory);
    let mut at = Some(view.top);
    for y in body.top()..body.bottom() {
        let Some(va) = at else { return };
        byte_row(pen, Rect { y, height: 1, ..body }, shape, &looks, va);
        at = va.checked_add(shape.per_row);
    }
}

fn byte_row(pen: &mut Pen<'_>, line: Rect, shape: Shape, looks: &Looks<'_>, first: Va) {
    let theme = pen.theme;
    let cursor = looks.view.cursor;
    // The last row of the address space does not wrap round.
    let row = (0..shape.per_row).filter_map(|nth| Some((nth, first.checked_add(nth)?)));
    let row: Vec<(u64, Va, Option<Option<u8>>)> =
        row.map(|(nth, va)| (nth, va, memory::byte(looks.memory, va))).collect();
    if row.iter().any(|(_, va, _)| *va == cursor) {
        pen.cell(line.x, line.y, pen.glyphs.selected, theme.key);
    }
    let cell = Rect { width: shape.address.min(line.width.saturating_sub(1)), ..rest(line, 1) };
    pen.right(cell, &address(first, shape.address), theme.address);
    if row.iter().any(|(_, va, _)| looks.just_changed(*va)) {
        pen.text(Rect { width: 1, ..rest(line, 1 + shape.address) }.intersection(line), "*", theme.changed);
    }
    let missing = row.iter().all(|(.., byte)| *byte == Some(None));
    for &(nth, va, byte) in &row {
        let (digits, plain) = match byte {
            Some(Some(0)) => ("00".to_owned(), theme.muted),
            Some(Some(byte)) => (format!("{byte:02x}"), theme.number),
            Some(None) => ("??".to_owned(), theme.missing),
            None => ("  ".to_owned(), theme.muted),
        };
        let mut style = looks.style(pen, va, plain);
        if va == cursor {
            style = theme.cursor;
        }
        let spot = rest(line, shape.byte(nth));
        pen.text(Rect { width: spot.width.min(2), ..spot }, &digits, style);
        if !shape.letters || missing {
            continue;
        }
        let letter = match byte {
            Some(Some(byte @ b' '..=b'~')) => char::from(byte).to_string(),
            Some(Some(_)) => ".".to_owned(),
            Some(None) => "?".to_owned(),
            None => " ".to_owned(),
        };
        let mut style = looks.style(pen, va, if letter == "." { theme.muted } else { theme.symbol });
        if va == cursor {
            style = theme.cursor;
        }
        let spot = rest(line, shape.letter(nth));
        pen.text(Rect { width: spot.width.min(1), ..spot }, &letter, style);
    }
    if missing && shape.letters {
        let words = if shape.per_row >= 16 { "not mapped" } else { "missing" };
        pen.text(rest(line, shape.letter(0)), words, theme.missing);
    }
}

fn code(pen: &mut Pen<'_>, body: Rect, snapshot: &Snapshot, ui: &UiState, view: &MemoryView, memory: &MemoryDetail) {
    let rows = memory::code_rows(memory, view.top, memory::rows(ui));
    if rows.is_empty() {
        let text = match memory::byte(memory, view.top) {
            Some(None) => "The page of these instructions is not mapped.",
            _ => "Reading it from the guest.",
        };
        return sentence(pen, body, text, pen.theme.missing);
    }
    let looks = Looks::new(snapshot, view, memory);
    for (y, row) in (body.top()..body.bottom()).zip(rows) {
        let line = Rect { y, height: 1, ..body };
        match row {
            CodeRow::Symbol(name) => {
                pen.text(rest(line, 3), &format!("{name}:"), pen.theme.section);
            }
            CodeRow::Line(code) => code_row(pen, line, snapshot, &looks, code),
        }
    }
}

fn code_row(pen: &mut Pen<'_>, line: Rect, snapshot: &Snapshot, looks: &Looks<'_>, code: &CodeLine) {
    let theme = pen.theme;
    let length = memory::length(code);
    let here = looks.view.cursor.0 >= code.address.0 && looks.view.cursor - code.address < length;
    if here {
        pen.tint(line, theme.selected);
        pen.cell(line.x, line.y, pen.glyphs.selected, theme.selected);
    }
    // A breakpoint that is in force in this address space.
    let set = snapshot.breakpoints.iter().find(|breakpoint| {
        let concerns = match breakpoint.scope {
            Scope::Global => true,
            Scope::Process(pid) => looks.view.pid == Some(pid),
        };
        breakpoint.address == code.address && concerns
    });
    if let Some(breakpoint) = set {
        let (glyph, style) = breakpoint_glyph(breakpoint, theme, pen.glyphs);
        pen.text(Rect { width: 1, ..rest(line, 1) }.intersection(line), &glyph.to_string(), style);
    }
    let (cells, with_bytes) = match line.width {
        70.. => (17, true),
        50..70 => (17, false),
        _ => (9, false),
    };
    let spot = rest(line, 3);
    pen.right(Rect { width: spot.width.min(cells), ..spot }, &address(code.address, cells), theme.address);
    let bytes = (0..length).filter_map(|nth| code.address.checked_add(nth));
    if bytes.clone().any(|va| looks.just_changed(va)) {
        pen.text(Rect { width: 1, ..rest(line, 3 + cells) }.intersection(line), "*", theme.changed);
    }
    let mut text = rest(line, 3 + cells + 2);
    if with_bytes {
        for (nth, va) in (0u16..10).zip(bytes) {
            let digits = code.bytes.get(usize::from(nth) * 2..usize::from(nth) * 2 + 2).unwrap_or("");
            let style = looks.style(pen, va, theme.muted);
            pen.text(Rect { width: text.width.min(2), ..rest(text, nth * 2) }.intersection(line), digits, style);
        }
        text = rest(text, 22);
    }
    pen.text(text, &code.text, if here { theme.here } else { theme.symbol });
}

/// The text of a page walk.
fn walk_sheet(desk: &Desk<'_>, view: &MemoryView, memory: &MemoryDetail) -> Sheet {
    let mut sheet = Sheet::new(desk, String::new());
    let words = format!("Page walk of {} under root {:x}", format::Address(view.cursor.0), memory.root.0);
    sheet.section(words);
    walk::levels(&mut sheet, desk, view.cursor, &memory.walk);
    if memory.missing.is_some() {
        sheet.gap();
        walk::missing(&mut sheet, desk, memory.missing.as_ref());
    } else if memory::byte(memory, view.cursor) == Some(None) {
        sheet.gap();
        sheet.text("The address is not mapped, or what it maps to is no memory.", desk.theme.missing);
    }
    walk::end(&mut sheet, desk, view.cursor, &memory.walk);
    sheet
}

fn walk_desk<'a>(pen_theme: &'a crate::ui::theme::Theme, snapshot: &'a Snapshot, ui: &'a UiState) -> Desk<'a> {
    let columns = memory::body(memory::area(ui)).width.saturating_sub(2).max(1);
    Desk { snapshot, ui, theme: pen_theme, glyphs: crate::ui::glyphs::Glyphs::of(ui.ascii), columns }
}

fn page_walk(pen: &mut Pen<'_>, body: Rect, snapshot: &Snapshot, ui: &UiState, view: &MemoryView) {
    let Some(memory) = memory::held(snapshot, view) else { return };
    let sheet = walk_sheet(&walk_desk(pen.theme, snapshot, ui), view, memory);
    let first = view.scroll.min(sheet.lines.len().saturating_sub(usize::from(body.height)));
    for (y, line) in (body.top()..body.bottom()).zip(sheet.lines.iter().skip(first)) {
        pen.line(rest(Rect { y, height: 1, ..body }, 1), line);
    }
}

/// The furthest that a page walk scrolls.
pub(super) fn most_scroll(snapshot: &Snapshot, ui: &UiState, view: &MemoryView) -> usize {
    let theme = crate::ui::theme::Theme::plain();
    let lines = memory::held(snapshot, view)
        .map_or(0, |memory| walk_sheet(&walk_desk(&theme, snapshot, ui), view, memory).lines.len());
    lines.saturating_sub(usize::from(memory::body(memory::area(ui)).height))
}

/// What is known of the place under the cursor, and how far a search is.
fn told(pen: &mut Pen<'_>, line: Rect, snapshot: &Snapshot, view: &MemoryView, held: Option<&MemoryDetail>) {
    let theme = pen.theme;
    let on_bar = |style: Style| Style { bg: theme.header.bg, ..style };
    if let Some(search) = &snapshot.search {
        let read = format::memory(search.read_bytes);
        let words = format!(" searching at {}: {read} read, {} found", format::Address(search.at.0), search.found);
        let used = pen.text(line, &words, on_bar(theme.pending));
        pen.text(rest(line, used), "   esc gives up", on_bar(theme.muted));
        return;
    }
    let named = |va: Va| snapshot.symbols.describe(va, SYMBOL_REACH);
    let name = |va: Va| named(va).map_or_else(String::new, |name| format!(" {name}"));
    let mut parts = vec![
        Span::styled(format!(" {}", format::Address(view.cursor.0)), on_bar(theme.address)),
        Span::styled(name(view.cursor), on_bar(theme.symbol)),
    ];
    if let Some(found) = &view.search {
        let nth = found.places.binary_search(&view.cursor).ok();
        let plus = if found.more { "+" } else { "" };
        let words = match nth {
            Some(nth) => format!("   match {} of {}{plus}", nth + 1, found.places.len()),
            None if found.places.len() == 1 && !found.more => "   1 match".to_owned(),
            None => format!("   {}{plus} matches", found.places.len()),
        };
        parts.push(Span::styled(words, on_bar(theme.tag)));
    }
    if let Some(memory) = held {
        let missing = memory::byte(memory, view.cursor) == Some(None);
        let pointed = match view.mode {
            MemoryMode::Code => {
                memory::line_of(memory, view.cursor).and_then(|nth| memory::lines(memory).nth(nth)?.target)
            }
            _ => memory::word(memory, view.cursor).map(Va),
        };
        if missing {
            // What is known is that of the first page that is shown.
            let same_page = memory.va.0 >> 12 == view.cursor.0 >> 12;
            let known = memory.missing.as_ref().filter(|_| same_page).map_or("not mapped", |missing| &missing.what);
            parts.push(Span::styled(format!("   {known}"), on_bar(theme.missing)));
        } else if let Some(pointed) = pointed {
            let words = if view.mode == MemoryMode::Code { "goes to" } else { "word" };
            parts.push(Span::styled(format!("   {words} "), on_bar(theme.muted)));
            parts.push(Span::styled(format::Address(pointed.0).to_string(), on_bar(theme.number)));
            parts.push(Span::styled(name(pointed), on_bar(theme.symbol)));
        }
    }
    pen.line(line, &Line::from(parts));
}
