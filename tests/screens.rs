//! What the screen looks like: every pane and popup at four sizes, as text and as styles.

#[path = "screens/fixture.rs"]
mod fixture;

use ratatui::{Terminal, backend::TestBackend, buffer::Buffer};
use vmscope::{
    engine::snapshot::Snapshot,
    ui::{self, export, rows, state::UiState, theme::Theme},
};

const SIZES: [(u16, u16); 4] = [(40, 12), (80, 24), (120, 40), (240, 67)];

fn draw(snapshot: &Snapshot, ui: &mut UiState, theme: &Theme) -> Buffer {
    rows::settle(snapshot, ui);
    let mut terminal = Terminal::new(TestBackend::new(ui.size.0, ui.size.1)).unwrap();
    terminal.draw(|frame| ui::render(frame, snapshot, ui, theme)).unwrap();
    terminal.backend().buffer().clone()
}

/// Leaves the picture in the folder that `SCREENS` names, for looking at it.
fn picture(name: &str, buffer: &Buffer, theme: &Theme) {
    if let Some(folder) = std::env::var_os("SCREENS") {
        let file = std::path::Path::new(&folder).join(name).with_extension("png");
        std::fs::write(file, export::png(buffer, theme).unwrap()).unwrap();
    }
}

#[test]
fn panes() {
    for size in SIZES {
        let theme = Theme::default();
        let buffer = draw(&fixture::snapshot(), &mut fixture::screen(size), &theme);
        picture(&format!("panes-{}x{}", size.0, size.1), &buffer, &theme);
    }
}
