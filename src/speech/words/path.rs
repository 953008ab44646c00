//! Dynamic time warping: the cheapest way from the first token at the first column to the last at the last.

/// The step that leads to a place of the matrix.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Next token, next column.
    Diagonal,
    /// Next token, same column.
    Down,
    /// Same token, next column.
    Right,
}

/// The path through `matrix` `[rows, columns]` with the largest sum that never goes back: row and column of each of
/// its places. Sums are in f64. Where the two best ways to a place are equal, the path comes from the left, even if
/// that is the worst: so does the reference's.
///
/// Without columns, every row is at column 0.
pub fn dtw(matrix: &[f32], rows: usize, columns: usize) -> (Vec<usize>, Vec<usize>) {
    if rows == 0 || columns == 0 {
        return ((0..rows).collect(), vec![0; rows]);
    }
    let steps = steps(matrix, columns);
    let (mut row, mut column) = (rows - 1, columns - 1);
    let (mut text, mut time) = (Vec::new(), Vec::new());
    loop {
        text.push(row);
        time.push(column);
        let step = match (row, column) {
            (0, 0) => break,
            (0, _) => Step::Right,
            (_, 0) => Step::Down,
            _ => steps[row * columns + column],
        };
        row -= usize::from(step != Step::Right);
        column -= usize::from(step != Step::Down);
    }
    text.reverse();
    time.reverse();
    (text, time)
}

/// The last step of the best path to each place.
fn steps(matrix: &[f32], columns: usize) -> Vec<Step> {
    let mut steps = Vec::with_capacity(matrix.len());
    // Of the row above, from the column left of the first on: there is no way from outside but at the corner.
    let mut above = vec![f64::INFINITY; columns + 1];
    above[0] = 0.0;
    for row in matrix.chunks_exact(columns) {
        let mut corner = std::mem::replace(&mut above[0], f64::INFINITY);
        let mut left = f64::INFINITY;
        for (value, above) in row.iter().zip(&mut above[1..]) {
            let (step, cost) = cheapest(corner, *above, left);
            corner = *above;
            left = cost - f64::from(*value);
            *above = left;
            steps.push(step);
        }
    }
    steps
}

fn cheapest(corner: f64, above: f64, left: f64) -> (Step, f64) {
    if corner < above && corner < left {
        return (Step::Diagonal, corner);
    }
    if above < corner && above < left {
        return (Step::Down, above);
    }
    (Step::Right, left)
}
