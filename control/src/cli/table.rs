//! Tables as kubectl prints them: columns as wide as their widest cell, three blanks between them.

use std::fmt::Write as _;

/// Blanks between columns.
const GAP: usize = 3;

/// A table with a header.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    /// A table with these columns.
    pub(super) fn new(columns: &[&str]) -> Table {
        Table { rows: vec![columns.iter().map(|&name| name.to_owned()).collect()], right: Vec::new() }
    }

    /// The columns from number `first` on hold numbers, which stand under one another.
    pub(super) fn numbers_from(mut self, first: usize) -> Table {
        self.right = (first..self.rows[0].len()).collect();
        self
    }

    /// Adds a row. An empty cell is shown as `<none>`.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let shown = |cell: String| if cell.is_empty() { "<none>".to_owned() } else { cell };
        self.rows.push(cells.into_iter().map(shown).collect());
    }

    /// Takes a column out.
    pub(super) fn without(mut self, column: usize) -> Table {
        for row in &mut self.rows {
            row.remove(column);
        }
        self.right = self.right.iter().map(|&at| if at > column { at - 1 } else { at }).collect();
        self
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows[0].len();
        let width = |at: usize| self.rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (at, cell) in row.iter().enumerate() {
                let width = widths[at];
                if self.right.contains(&at) {
                    let _ = write!(line, "{cell:>width$}");
                } else {
                    let _ = write!(line, "{cell:<width$}");
                }
                line.push_str(&" ".repeat(GAP));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAMESPACE", "NAME", "COUNT"]).numbers_from(2);
        table.row(["default".into(), "kubernetes".into(), "7".into()]);
        table.row(["kube-system".into(), String::new(), "12345678".into()]);
        assert_eq!(
            table.to_string(),
            "NAMESPACE     NAME            COUNT\n\
             default       kubernetes          7\n\
             kube-system   <none>       12345678\n"
        );
        assert_eq!(table.without(0).to_string().lines().nth(1), Some("kubernetes          7"));
    }
}
