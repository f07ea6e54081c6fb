//! Connected components by disjoint sets (union by size, path halving).

/// A partition of `0..n` that grows coarser with every edge.
#[derive(Debug, Clone)]
pub struct Components {
    parent: Vec<u32>,
    size: Vec<u32>,
}

impl Components {
    /// `n` components of one row each. `n` is at most 4,294,967,295, which every search has checked.
    pub fn new(n: usize) -> Self {
        Self {
            parent: (0..n as u32).collect(),
            size: vec![1; n],
        }
    }

    /// The row that stands for the component of `row`. Panics past the end, like a slice.
    pub fn root(&mut self, row: u32) -> u32 {
        let mut row = row;
        while self.parent[row as usize] != row {
            let above = self.parent[self.parent[row as usize] as usize];
            self.parent[row as usize] = above;
            row = above;
        }
        row
    }

    /// Joins the components of `a` and `b`; whether they were two.
    pub fn join(&mut self, a: u32, b: u32) -> bool {
        let (mut a, mut b) = (self.root(a), self.root(b));
        if a == b {
            return false;
        }
        if self.size[a as usize] < self.size[b as usize] {
            (a, b) = (b, a);
        }
        self.parent[b as usize] = a;
        self.size[a as usize] += self.size[b as usize];
        true
    }

    /// Number of the component of every row, from 0 in the order of their first rows, and how many there are.
    pub fn numbered(&mut self) -> (Vec<u32>, usize) {
        let n = self.parent.len();
        let mut number_of_root = vec![u32::MAX; n];
        let mut count = 0u32;
        let numbers = (0..n as u32)
            .map(|row| {
                let root = self.root(row) as usize;
                if number_of_root[root] == u32::MAX {
                    number_of_root[root] = count;
                    count += 1;
                }
                number_of_root[root]
            })
            .collect();
        (numbers, count as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Components by spreading the smallest number along the edges until nothing changes.
    fn naive(n: usize, edges: &[(u32, u32)]) -> Vec<u32> {
        let mut smallest: Vec<u32> = (0..n as u32).collect();
        loop {
            let before = smallest.clone();
            for &(a, b) in edges {
                let min = smallest[a as usize].min(smallest[b as usize]);
                smallest[a as usize] = min;
                smallest[b as usize] = min;
            }
            if smallest == before {
                break;
            }
        }
        let mut firsts = smallest.clone();
        firsts.sort_unstable();
        firsts.dedup();
        let number = |first: &u32| firsts.binary_search(first).expect("a first row") as u32;
        smallest.iter().map(number).collect()
    }

    proptest! {
        #[test]
        fn components_are_those_of_flooding(
            n in 1usize..60,
            pairs in prop::collection::vec((0u32..1000, 0u32..1000), 0..80),
        ) {
            let edges: Vec<(u32, u32)> = pairs.iter().map(|&(a, b)| (a % n as u32, b % n as u32)).collect();
            let mut components = Components::new(n);
            let joined = edges.iter().filter(|&&(a, b)| components.join(a, b)).count();
            let (numbers, count) = components.numbered();
            prop_assert_eq!(&numbers, &naive(n, &edges));
            prop_assert_eq!(count, n - joined);
        }
    }
}
