package localpg

import (
	"fmt"
	"math/rand/v2"
	"net"
)

// Ports are taken from below the range that the kernel gives to outgoing
// connections. A port in that range could be lost to one while its server is
// being restarted, and a client that retries could even connect to itself.
const (
	lowestPort  = 15000
	highestPort = 32000
)

// freePort returns a port of 127.0.0.1 that nothing listens on. Another process
// may take it before our child does: the caller tries again with another one.
func freePort() (int, error) {
	for range 20 {
		port := lowestPort + rand.IntN(highestPort-lowestPort)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, l.Close()
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
