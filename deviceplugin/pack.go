package deviceplugin

import (
	"cmp"
	"maps"
	"slices"
)

// Pack picks size slices: those that must be in it, then from the GPUs of these, then from as few and as full GPUs as there can be.
// So a container has one share where one GPU has room for it, and whole GPUs stay whole for those who need one. It answers with
// fewer where there are not enough; kubelet then chooses for itself.
func Pack(available, must []string, size int) []string {
	picked := slices.Compact(slices.Sorted(slices.Values(must)))
	picked = picked[:min(max(size, 0), len(picked))]
	free := map[string][]string{} // by card
	for _, id := range slices.Compact(slices.Sorted(slices.Values(available))) {
		if !slices.Contains(picked, id) {
			free[cardOf(id)] = append(free[cardOf(id)], id)
		}
	}
	take := func(card string) {
		n := min(size-len(picked), len(free[card]))
		picked = append(picked, free[card][:n]...)
		delete(free, card)
	}
	for _, id := range slices.Clone(picked) {
		take(cardOf(id))
	}
	for len(picked) < size && len(free) > 0 {
		take(nextCard(free, size-len(picked)))
	}
	return picked
}

// nextCard is the fullest one that has room for all that is wanted, and else the emptiest: so the fewest are used.
func nextCard(free map[string][]string, wanted int) string {
	cards := slices.SortedFunc(maps.Keys(free), func(a, b string) int {
		return cmp.Or(cmp.Compare(len(free[a]), len(free[b])), cmp.Compare(a, b))
	})
	for _, card := range cards {
		if len(free[card]) >= wanted {
			return card
		}
	}
	return cards[len(cards)-1]
}
