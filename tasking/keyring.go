package tasking

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/fernet/fernet-go"
)

// keyring encrypts arguments with its first key and decrypts with any. Empty, it leaves them plain.
type keyring []*fernet.Key

// sealed is how encrypted arguments stand in the database.
type sealed struct {
	Token string `json:"$encrypted"`
}

func newKeyring(keys []string) (keyring, error) {
	var ring keyring
	for i, k := range keys {
		key, err := fernet.DecodeKey(k)
		if err != nil {
			return nil, fmt.Errorf("argument key %d: not 32 bytes in base64: make one with `openssl rand -base64 32`", i+1)
		}
		ring = append(ring, key)
	}
	return ring, nil
}

func (k keyring) seal(args json.RawMessage) (json.RawMessage, error) {
	if len(k) == 0 {
		if _, ok := asSealed(args); ok {
			return nil, invalidIn("args", "arguments must not be an object with the one key \"$encrypted\"")
		}
		return args, nil
	}
	token, err := fernet.EncryptAndSign(args, k[0])
	if err != nil {
		return nil, fmt.Errorf("encrypt arguments: %w", err)
	}
	return json.Marshal(sealed{string(token)})
}

func (k keyring) open(args json.RawMessage) (json.RawMessage, error) {
	token, ok := asSealed(args)
	if !ok {
		return args, nil
	}
	if len(k) == 0 {
		return nil, errors.New("decrypt arguments: this process has no key")
	}
	plain := fernet.VerifyAndDecrypt([]byte(token), -1, k)
	if plain == nil {
		return nil, fmt.Errorf("decrypt arguments: none of the %d keys of this process fits", len(k))
	}
	return plain, nil
}

func asSealed(args json.RawMessage) (string, bool) {
	if !bytes.ContainsAny(args, `$\`) { // nor can it be escaped
		return "", false
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(args, &fields) != nil || len(fields) != 1 {
		return "", false
	}
	var token string
	if json.Unmarshal(fields["$encrypted"], &token) != nil {
		return "", false
	}
	return token, token != ""
}
