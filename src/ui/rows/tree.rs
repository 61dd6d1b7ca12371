//! The process tree: children under their parents. The guest tells who is whose parent, so a cycle is possible; every
//! process is shown exactly once whatever it says.

use std::collections::HashMap;

use super::RowRef;
use crate::engine::snapshot::Process;

/// Deepest level that is drawn as such.
const DEEPEST: u16 = 32;

/// Puts the given rows under their parents; siblings and roots keep the given order.
pub(super) fn arrange(processes: &[Process], order: &[u32]) -> Vec<RowRef> {
    let process = |index: u32| processes.get(index as usize);
    let mut owner: HashMap<u32, u32> = HashMap::with_capacity(order.len());
    for &index in order {
        if let Some(process) = process(index) {
            owner.entry(process.pid).or_insert(index);
        }
    }
    let parent = |index: u32| process(index).and_then(|p| owner.get(&p.ppid).copied()).filter(|&p| p != index);
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut tops = Vec::new();
    for &index in order {
        match parent(index) {
            Some(parent) => children.entry(parent).or_default().push(index),
            None => tops.push(index),
        }
    }
    let mut rows = Vec::with_capacity(order.len());
    let mut seen = vec![false; processes.len()];
    // Roots first; what a cycle keeps away from every root is a root of its own.
    for &top in tops.iter().chain(order) {
        let mut stack = vec![RowRef { index: top, last: true, ..RowRef::default() }];
        while let Some(row) = stack.pop() {
            match seen.get_mut(row.index as usize) {
                Some(seen) if !*seen => *seen = true,
                _ => continue,
            }
            rows.push(row);
            let depth = (row.depth + 1).min(DEEPEST);
            let below = children.get(&row.index).into_iter().flatten().rev().enumerate();
            let lines = if row.last { row.lines } else { row.lines | 1 << row.depth };
            stack.extend(below.map(|(nth, &index)| RowRef {
                index,
                depth,
                last: nth == 0,
                lines,
                ..RowRef::default()
            }));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arranged(pairs: &[(u32, u32)]) -> Vec<(u32, u16)> {
        let processes: Vec<Process> =
            pairs.iter().map(|&(pid, ppid)| Process { pid, ppid, ..Process::default() }).collect();
        let order: Vec<u32> = (0..processes.len() as u32).collect();
        let rows = arrange(&processes, &order);
        rows.iter().map(|row| (pairs[row.index as usize].0, row.depth)).collect()
    }

    #[test]
    fn children_come_under_their_parents() {
        assert_eq!(arranged(&[(1, 0), (2, 0), (3, 1), (4, 3), (5, 1)]), [(1, 0), (3, 1), (4, 2), (5, 1), (2, 0)]);
    }

    #[test]
    fn a_lying_guest_loses_no_process() {
        assert_eq!(arranged(&[(1, 2), (2, 1), (3, 3), (4, 99)]), [(3, 0), (4, 0), (1, 0), (2, 1)]);
        assert_eq!(arranged(&[(7, 0), (7, 0), (8, 7)]), [(7, 0), (8, 1), (7, 0)]);
    }
}
