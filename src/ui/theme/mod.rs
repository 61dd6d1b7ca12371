//! Themes: every colour and attribute that the screen uses, by name.
//!
//! A theme is a TOML file: a `[palette]` of named colours, `[styles]` that use them, and `inherits` for what it leaves
//! out (`parse`). The built-in ones are compiled in; reading a user's file is the application's work, see
//! [`Theme::parse`]. No state is told by colour alone: each has a glyph or a word as well.

mod color;
mod parse;

use std::convert::Infallible;

use ratatui::style::{Color, Modifier, Style};

pub(in crate::ui) use self::color::rgb;
pub use self::color::{Rgb, contrast};
use super::state::ColorDepth;

macro_rules! items {
    ($($(#[$doc:meta])+ $item:ident,)+) => {
        /// The style of everything on the screen.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Theme {
            /// Its name, or the file it came from.
            pub name: String,
            /// Background and foreground of pictures where the screen says "the terminal's own".
            pub canvas: (Rgb, Rgb),
            $($(#[$doc])+ pub $item: Style,)+
        }

        impl Theme {
            /// The names of all items.
            pub const ITEMS: &'static [&'static str] = &[$(stringify!($item)),+];

            /// Every item with its name.
            pub fn items(&self) -> impl Iterator<Item = (&'static str, Style)> {
                [$((stringify!($item), self.$item)),+].into_iter()
            }

            fn item_mut(&mut self, name: &str) -> Option<&mut Style> {
                match name {
                    $(stringify!($item) => Some(&mut self.$item),)+
                    _ => None,
                }
            }

            fn build<E>(name: &str, canvas: (Rgb, Rgb), mut style: impl FnMut(&'static str) -> Result<Style, E>) -> Result<Self, E> {
                Ok(Self { name: name.to_owned(), canvas, $($item: style(stringify!($item))?,)+ })
            }
        }
    };
}

items! {
    /// Normal text and the background of everything.
    text,
    /// Text of less weight.
    muted,
    /// The border of a pane.
    border,
    /// The border of the pane that gets the keys.
    border_focused,
    /// The title of a pane.
    title,
    /// The title of the pane that gets the keys.
    title_focused,
    /// Names of columns.
    heading,
    /// The name of the column that is sorted by.
    heading_sorted,
    /// The selected row of the pane that gets the keys; its background goes under the row's own colours.
    selected,
    /// The selected row of another pane.
    selected_inactive,
    /// The mark at a marked row.
    marked,
    /// The scroll bar's thumb.
    scrollbar,
    /// The header line.
    header,
    /// The program's name in it.
    brand,
    /// The guest runs.
    running,
    /// The guest stands.
    paused,
    /// The engine is on its way.
    attaching,
    /// The guest is gone.
    lost,
    /// A recording is played.
    replay,
    /// The view is frozen.
    frozen,
    /// Nothing may be changed.
    read_only,
    /// A breakpoint in the guest.
    active,
    /// Something that waits.
    pending,
    /// Something that is switched off.
    disabled,
    /// Something that failed.
    failed,
    /// A page fault on its way.
    injected,
    /// A missing page that came.
    resolved,
    /// A missing page that was given up.
    suppressed,
    /// A mapped address.
    paged_in,
    /// An unmapped address.
    paged_out,
    /// A process that the guest hides.
    hidden,
    /// A process on its way out.
    exiting,
    /// A virtual address.
    address,
    /// A symbol, a name.
    symbol,
    /// The user's own word.
    tag,
    /// A count.
    number,
    /// Sparklines.
    sparkline,
    /// An event of a breakpoint.
    event_breakpoint,
    /// An event of a page.
    event_page,
    /// An event of a fault.
    event_fault,
    /// An event of a process.
    event_process,
    /// An event of the machine or the engine.
    event_vm,
    /// A key in footer and help.
    key,
    /// What a key does.
    key_label,
    /// A key that does nothing now.
    key_disabled,
    /// The body of a popup.
    popup,
    /// The border of a popup.
    popup_border,
    /// The title of a popup.
    popup_title,
    /// A heading within a popup.
    section,
    /// The name of a value.
    label,
    /// A text field.
    input,
    /// The cursor in it.
    cursor,
    /// The part of a row that its filter found.
    matched,
    /// Bits and bytes that changed.
    changed,
    /// Memory that is not there.
    missing,
    /// The instruction that is spoken of.
    here,
    /// A notice that something was done.
    info,
    /// A notice that something needs attention.
    warning,
    /// A notice that something went wrong.
    error,
}

impl Default for Theme {
    /// The dark theme.
    fn default() -> Self {
        Self::builtin("dark").unwrap_or_else(|_| Self::plain())
    }
}

const BUILT_IN: &[(&str, &str)] = &[
    ("dark", include_str!("../../../themes/dark.toml")),
    ("light", include_str!("../../../themes/light.toml")),
    ("high-contrast", include_str!("../../../themes/high-contrast.toml")),
    ("color-blind", include_str!("../../../themes/color-blind.toml")),
    ("mono", include_str!("../../../themes/mono.toml")),
];

impl Theme {
    /// The names of the built-in themes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// The text of a built-in theme, for [`Theme::parse`] of themes that inherit from it.
    pub fn builtin_text(name: &str) -> Option<&'static str> {
        BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
    }

    /// A built-in theme.
    ///
    /// # Errors
    /// A sentence that lists the built-in themes when there is none of that name.
    pub fn builtin(name: &str) -> Result<Self, String> {
        let names = || Self::names().collect::<Vec<_>>().join(", ");
        let text = Self::builtin_text(name)
            .ok_or_else(|| format!("there is no theme '{name}': use one of {}, or a .toml file", names()))?;
        Self::parse(name, text, |name| Self::builtin_text(name).map(str::to_owned))
    }

    /// Everything in the terminal's own colours: for measuring, and should no theme be readable.
    pub fn plain() -> Self {
        let canvas = (Rgb(0, 0, 0), Rgb(255, 255, 255));
        match Self::build("plain", canvas, |_| Ok::<_, Infallible>(Style::new())) {
            Ok(theme) => theme,
            Err(never) => match never {},
        }
    }

    /// The same theme for a terminal with fewer colours. Where a background carries meaning and there is none to be
    /// had, the item is shown in reverse video.
    #[must_use]
    pub fn reduced(&self, depth: ColorDepth) -> Self {
        if depth == ColorDepth::TrueColor {
            return self.clone();
        }
        let base = self.text.bg;
        let reduce = |style: Style| {
            let mut reduced = style;
            match depth {
                ColorDepth::TrueColor => {}
                ColorDepth::Ansi256 => {
                    reduced.fg = style.fg.map(color::to_256);
                    reduced.bg = style.bg.map(color::to_256);
                }
                ColorDepth::Ansi16 | ColorDepth::Mono => {
                    let sixteen = depth == ColorDepth::Ansi16;
                    reduced.fg = style.fg.map(|fg| if sixteen { color::to_16(fg) } else { Color::Reset });
                    reduced.bg = style.bg.map(|_| Color::Reset);
                    let stands_out = style.bg.is_some_and(|bg| Some(bg) != base && color::far_apart(bg, base));
                    if stands_out {
                        // In reverse video the foreground becomes the background.
                        reduced.fg = style.bg.map(|bg| if sixteen { color::to_16(bg) } else { Color::Reset });
                        reduced = reduced.add_modifier(Modifier::REVERSED);
                    }
                }
            }
            reduced
        };
        let mut reduced = self.clone();
        for (name, style) in self.items() {
            if let Some(item) = reduced.item_mut(name) {
                *item = reduce(style);
            }
        }
        // A selection has to show whatever its background was; panes, popups and the header need not.
        if depth < ColorDepth::Ansi256 {
            reduced.selected = Style::new().fg(Color::Reset).bg(Color::Reset).add_modifier(Modifier::REVERSED);
            reduced.selected_inactive = Style::new().add_modifier(Modifier::UNDERLINED);
            reduced.cursor = reduced.selected;
        }
        reduced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Items that lie on rows, and so on the background of a selection too.
    const ON_ROWS: &[&str] = &[
        "text",
        "active",
        "pending",
        "disabled",
        "failed",
        "injected",
        "resolved",
        "suppressed",
        "paged_in",
        "paged_out",
        "hidden",
        "exiting",
        "address",
        "symbol",
        "tag",
        "number",
        "sparkline",
        "muted",
        "event_breakpoint",
        "event_page",
        "event_fault",
        "event_process",
        "event_vm",
        "marked",
        "matched",
    ];
    /// Items that lie in popups.
    const IN_POPUPS: &[&str] = &[
        "popup",
        "popup_border",
        "popup_title",
        "section",
        "label",
        "input",
        "matched",
        "changed",
        "missing",
        "here",
        "address",
        "symbol",
        "number",
        "muted",
        "tag",
        "key",
        "key_label",
        "key_disabled",
        "active",
        "pending",
        "failed",
    ];
    /// Items that are read word by word.
    const READ: &[&str] = &["text", "popup", "header", "key_label", "selected", "info", "warning", "error"];

    #[test]
    fn every_item_of_every_theme_can_be_read() {
        let mut unreadable = Vec::new();
        for name in Theme::names() {
            let theme = Theme::builtin(name).unwrap();
            let mut check = |item: &str, fg: Option<Color>, bg: Option<Color>| {
                let (Some(fg), Some(bg)) = (fg.and_then(rgb), bg.and_then(rgb)) else { return };
                let wanted = if READ.contains(&item) { 4.5 } else { 3.0 };
                let found = contrast(fg, bg);
                if found < wanted {
                    unreadable.push(format!("{name}: {item} {fg:?} on {bg:?}: {found:.2}, needs {wanted}"));
                }
            };
            for (item, style) in theme.items() {
                let reversed = style.add_modifier.contains(Modifier::REVERSED);
                let bg = style.bg.or(theme.text.bg);
                let fg = style.fg.or(theme.text.fg);
                if !reversed {
                    check(item, fg, bg);
                }
                if ON_ROWS.contains(&item) {
                    for under in [theme.selected, theme.selected_inactive] {
                        check(item, under.fg.or(style.fg), under.bg);
                    }
                }
                if IN_POPUPS.contains(&item) {
                    check(item, fg, style.bg.or(theme.popup.bg));
                }
            }
        }
        assert!(unreadable.is_empty(), "{}", unreadable.join("\n"));
    }

    #[test]
    fn fewer_colours_leave_what_a_terminal_can_show() {
        let allowed = |color: Option<Color>, depth| match (color, depth) {
            (None | Some(Color::Reset), _) => true,
            (Some(Color::Rgb(..)), _) | (Some(_), ColorDepth::Mono) => false,
            (Some(Color::Indexed(index)), ColorDepth::Ansi16) => index < 16,
            _ => true,
        };
        for name in Theme::names() {
            for depth in [ColorDepth::Mono, ColorDepth::Ansi16, ColorDepth::Ansi256] {
                let theme = Theme::builtin(name).unwrap().reduced(depth);
                for (item, style) in theme.items() {
                    assert!(allowed(style.fg, depth) && allowed(style.bg, depth), "{name} {depth:?} {item}: {style:?}");
                }
                assert_ne!(theme.selected, theme.text, "{name} {depth:?}: a selection shows");
            }
        }
    }

    #[test]
    fn an_unknown_theme_is_answered_with_the_known_ones() {
        let error = Theme::builtin("solarized").unwrap_err();
        assert!(error.contains("dark, light") && error.contains("solarized"), "{error}");
    }
}
