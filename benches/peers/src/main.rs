//! Ours, theirs and the floor, side by side: a table, or with `--json` a list of rows. A group name (`core`, `bpm`,
//! `ptm`) as an argument runs only that group.

mod bpm_rows;
mod core_rows;
mod memory;
mod ours;
mod ptm_rows;
mod table;
mod theirs;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut table =
        table::Table { only: arguments.iter().find(|a| !a.starts_with("--")).cloned(), ..Default::default() };
    if table.wants("core") {
        core_rows::run(&mut table);
    }
    if table.wants("bpm") {
        bpm_rows::run(&mut table);
    }
    if table.wants("ptm") {
        ptm_rows::run(&mut table);
    }
    table.print(arguments.iter().any(|a| a == "--json"));
}
