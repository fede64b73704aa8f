package arbiter

import (
	"fmt"
	"sync/atomic"

	"github.com/kerf-gpu/kerf/internal/node"
	"github.com/kerf-gpu/kerf/vgpu/share"
)

// onCard is a share's part of an over-committed card.
type onCard struct {
	live   *liveShare
	device int
}

// limitFixed tells every tenant of an over-committed card how much it may have of memory that cannot be moved. Who has more already, since
// another joined, keeps it and gets no more. s.mu is held.
func (s *Server) limitFixed() {
	cards := make(map[node.UUID][]onCard)
	for _, live := range s.sortedShares() {
		for i, d := range live.spec.Grant.Devices {
			if d.Mode == share.ModeOvercommit && s.leased(live.spec) {
				cards[d.UUID] = append(cards[d.UUID], onCard{live, i})
			}
		}
	}
	for gpu, tenants := range cards {
		promised := make([]share.Promise, len(tenants))
		for i, t := range tenants {
			promised[i] = share.Promise{Memory: t.live.spec.Grant.Devices[t.device].Memory, MinResident: t.live.spec.Grant.MinResident}
		}
		for i, limit := range share.FixedLimits(s.roomOn(gpu, len(tenants)), promised) {
			atomic.StoreUint64(&tenants[i].live.policy.Page.Device[tenants[i].device].FixedLimit, uint64(max(1, limit))) // 0 is none
		}
	}
}

// roomOn is what a card has for so many tenants beside a context of each.
func (s *Server) roomOn(gpu node.UUID, tenants int) node.Bytes {
	card, context := s.config.Card(gpu), node.Bytes(s.contextBytes[gpu])
	return card - min(card, reserve(card, context)+node.Bytes(tenants)*context)
}

// whatIsFixed says in words what of a share's memory cannot be moved, where that is near its limit; "" elsewhere.
func (l *liveShare) whatIsFixed() (why string) {
	for d, device := range l.spec.Grant.Devices {
		limit := node.Bytes(atomic.LoadUint64(&l.policy.Page.Device[d].FixedLimit))
		if fixed := l.fixed(d); limit > 0 && fixed >= limit-limit/8 {
			why += fmt.Sprintf("; of its memory on GPU %d %s cannot be moved (pools, arrays, managed memory, cuMemCreate), and %s is the most: beyond that it is out of memory, so that the others' memory finds room", device.Index, fixed, limit)
		}
	}
	return why
}

// fixed is what a share has of a device that cannot be moved, contexts apart, as its sessions say.
func (l *liveShare) fixed(device int) (sum node.Bytes) {
	context := atomic.LoadUint64(&l.policy.Page.Device[device].ContextBytes)
	for i, session := range l.slots {
		if session == nil {
			continue
		}
		apart := context
		if r := &l.usage.Page.Residency[i]; atomic.LoadUint32(&r.Generation) == atomic.LoadUint32(&l.usage.Page.Slot[i].Generation) {
			apart += atomic.LoadUint64(&r.Resident[device]) + atomic.LoadUint64(&r.Swapped[device])
		}
		charged := l.usage.Page.Slot[i].Read().Charged[device]
		sum += node.Bytes(charged - min(charged, apart))
	}
	return sum
}
