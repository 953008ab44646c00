//! The order in which patches of pictures lie where layers see windows only. Integers only.

/// How units, squares of patches that become one row of the text, are put window by window, and how many patches belong
/// together.
#[derive(Debug, Default)]
pub struct WindowOrder {
    /// Which unit stands where.
    pub units: Vec<u32>,
    /// Row and column of every patch in its picture, in this order.
    pub places: Vec<(usize, usize)>,
    /// Patches of every window; those at the right and at the bottom may be smaller.
    pub windows: Vec<usize>,
    /// Patches of every picture.
    pub pictures: Vec<usize>,
}

impl WindowOrder {
    /// Adds a picture of so many rows and columns of units. `window`: units of a window's side; `merge`: patches of a
    /// unit's side.
    pub fn add(&mut self, (rows, columns): (usize, usize), window: usize, merge: usize) {
        let first = self.units.len();
        for top in (0..rows).step_by(window) {
            for left in (0..columns).step_by(window) {
                let (bottom, right) =
                    (top.saturating_add(window).min(rows), left.saturating_add(window).min(columns));
                self.windows.push((bottom - top) * (right - left) * merge * merge);
                for (row, column) in
                    (top..bottom).flat_map(|row| (left..right).map(move |column| (row, column)))
                {
                    self.units.push((first + row * columns + column) as u32);
                    let patches = (0..merge * merge).map(|patch| (patch / merge, patch % merge));
                    self.places.extend(patches.map(|(y, x)| (row * merge + y, column * merge + x)));
                }
            }
        }
        self.pictures.push(rows * columns * merge * merge);
    }

    /// Where each unit stands.
    pub fn back(&self) -> Vec<u32> {
        let mut back = vec![0; self.units.len()];
        for (at, &unit) in (0..).zip(&self.units) {
            back[unit as usize] = at;
        }
        back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three rows and five columns of units in windows of two, behind a picture of one unit.
    #[test]
    fn windows_keep_what_is_left_at_the_right_and_at_the_bottom() {
        let mut order = WindowOrder::default();
        order.add((1, 1), 2, 1);
        order.add((3, 5), 2, 1);
        assert_eq!(order.units, [0, 1, 2, 6, 7, 3, 4, 8, 9, 5, 10, 11, 12, 13, 14, 15]);
        assert_eq!(order.windows, [1, 4, 4, 2, 2, 2, 1]);
        assert_eq!(order.pictures, [1, 15]);
        assert_eq!(order.places[..6], [(0, 0), (0, 0), (0, 1), (1, 0), (1, 1), (0, 2)]);
        let back = order.back();
        assert!((0..16).all(|unit| order.units[back[unit] as usize] as usize == unit));
    }

    #[test]
    fn without_windows_a_picture_is_one_in_its_own_order() {
        let mut order = WindowOrder::default();
        order.add((2, 1), usize::MAX, 2);
        assert_eq!(order.units, [0, 1]);
        assert_eq!(order.windows, order.pictures);
        let places = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)];
        assert_eq!(order.places, places);
    }
}
