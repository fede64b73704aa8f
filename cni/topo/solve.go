package topo

// price is compared word by word, the first one first, and added word by word.
// The Hungarian method asks no more of a number than that.
type price [1 + (MaxGPUs+rowsPerWord-1)/rowsPerWord]int64

func (a *price) add(b *price) {
	for i := range a {
		a[i] += b[i]
	}
}

func (a *price) sub(b *price) {
	for i := range a {
		a[i] -= b[i]
	}
}

func (a *price) less(b *price) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

// solve gives each row a column of its own such that the prices add up to the
// least: the Hungarian method with potentials, O(rows² · columns). There must be
// at least as many columns as rows.
func solve(rows [][]price) []int {
	if len(rows) == 0 {
		return nil
	}
	s := &search{rows: rows, u: make([]price, len(rows)), v: make([]price, len(rows[0])), holder: make([]int, len(rows[0])),
		slack: make([]price, len(rows[0])), from: make([]int, len(rows[0])), state: make([]mark, len(rows[0]))}
	for c := range s.holder {
		s.holder[c] = none
	}
	for row := range rows {
		s.seat(row)
	}
	columns := make([]int, len(rows))
	for c, row := range s.holder {
		if row != none {
			columns[row] = c
		}
	}
	return columns
}

const none = -1

// mark is how far a search knows a column.
type mark uint8

const (
	unseen mark = iota
	reachable
	visited
)

type search struct {
	rows   [][]price
	u, v   []price // potentials of rows and columns: u + v is at most the price, and equal to it where they are matched
	holder []int   // column → row
	slack  []price // by column: the least that is missing from u + v to a price of a visited row
	from   []int   // by column: the column of the row that slack is from
	state  []mark
}

// seat finds the cheapest way for one more row to have a column, moving the
// rows that are in its way.
func (s *search) seat(row int) {
	clear(s.state)
	current, column := row, none
	for {
		s.reach(current, column)
		column = s.nearest()
		s.shift(row, s.slack[column])
		s.state[column] = visited
		if s.holder[column] == none {
			break
		}
		current = s.holder[column]
	}
	for column != none {
		before := s.from[column]
		if before == none {
			s.holder[column] = row
		} else {
			s.holder[column] = s.holder[before]
		}
		column = before
	}
}

// reach looks at all columns from a row, which holds column via.
func (s *search) reach(row, via int) {
	for c := range s.v {
		if s.state[c] == visited {
			continue
		}
		gap := s.rows[row][c]
		gap.sub(&s.u[row])
		gap.sub(&s.v[c])
		if s.state[c] == unseen || gap.less(&s.slack[c]) {
			s.slack[c], s.from[c], s.state[c] = gap, via, reachable
		}
	}
}

func (s *search) nearest() int {
	best := none
	for c := range s.v {
		if s.state[c] == reachable && (best == none || s.slack[c].less(&s.slack[best])) {
			best = c
		}
	}
	return best
}

// shift changes potentials by delta so that the nearest column is exact.
func (s *search) shift(row int, delta price) {
	if delta == (price{}) {
		return
	}
	s.u[row].add(&delta)
	for c := range s.v {
		switch s.state[c] {
		case visited:
			s.u[s.holder[c]].add(&delta)
			s.v[c].sub(&delta)
		case reachable:
			s.slack[c].sub(&delta)
		}
	}
}
