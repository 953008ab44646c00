//! A table of text: names to the left, figures to the right, one column below the other.

use std::fmt;

/// A table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grid {
    rows: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    name: String,
    cells: Vec<Option<String>>,
}

impl Grid {
    /// A table with a heading for each column.
    pub fn new(headings: impl IntoIterator<Item = String>) -> Self {
        let cells = headings.into_iter().map(Some).collect();
        Self { rows: vec![Row { name: String::new(), cells }] }
    }

    /// Adds a row, unless it has nothing to say.
    pub fn row(&mut self, name: &str, cells: impl IntoIterator<Item = Option<String>>) {
        let cells: Vec<_> = cells.into_iter().collect();
        if cells.iter().any(Option::is_some) {
            self.rows.push(Row { name: name.to_owned(), cells });
        }
    }

    /// Each row's name and cells; the first one has the headings.
    pub fn rows(&self) -> impl Iterator<Item = (&str, Vec<&str>)> {
        self.rows.iter().map(|row| {
            let cells = row.cells.iter().map(|cell| cell.as_deref().unwrap_or("-")).collect();
            (row.name.as_str(), cells)
        })
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wide = |text: &str| text.chars().count();
        let names = self.rows().map(|(name, _)| wide(name)).max().unwrap_or(0);
        let columns = self.rows().map(|(_, cells)| cells.len()).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows().filter_map(|(_, cells)| cells.get(column).map(|cell| wide(cell))).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (index, (name, cells)) in self.rows().enumerate() {
            if index > 0 {
                writeln!(formatter)?;
            }
            write!(formatter, "{name:names$}")?;
            for (cell, width) in cells.iter().zip(&widths) {
                write!(formatter, "  {cell:>width$}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_lie_below_each_other() {
        let mut grid = Grid::new(["1", "1000"].map(str::to_owned));
        grid.row("requests", [Some("5".into()), Some("12".into())]);
        grid.row("nothing", [None, None]);
        grid.row("µs", [None, Some("1".into())]);
        assert_eq!(grid.to_string(), "          1  1000\nrequests  5    12\nµs        -     1");
    }
}
