// Reads a log of Dure with Go's x/mod/sumdb alone: `sumdb LOCATION < checks.json`, LOCATION a folder or an http URL.
//
// Everything is believed only as far as the checkpoint's signatures go: the note is opened with the log's key, a quorum of the witnesses' keys
// must have cosigned, every tile is hashed up to the root, every entry to its leaf, and the proofs we hand in are checked, and made again.
// Exit 1 with one line says what does not hold.
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type checks struct {
	Log       string
	Witnesses []string
	Quorum    int
	Records   []struct {
		Index int64
		Path  []tlog.Hash
	}
	Trees []struct {
		Old  int64
		Root tlog.Hash
		Path []tlog.Hash
	}
}

// cosigner verifies type 0x04, which the package has not: a time and an Ed25519 signature (c2sp.org/tlog-cosignature).
type cosigner struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

func (c cosigner) Name() string    { return c.name }
func (c cosigner) KeyHash() uint32 { return c.hash }
func (c cosigner) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	signed := fmt.Sprintf("cosignature/v1\ntime %d\n%s", binary.BigEndian.Uint64(sig), msg)
	return ed25519.Verify(c.key, []byte(signed), sig[8:])
}

func newCosigner(vkey string) (note.Verifier, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, fmt.Errorf("witness key: not name+id+key")
	}
	id, err1 := hex.DecodeString(parts[1])
	key, err2 := base64.StdEncoding.DecodeString(parts[2])
	if err1 != nil || err2 != nil || len(id) != 4 || len(key) != 33 || key[0] != 4 {
		return nil, fmt.Errorf("witness key: not of type 0x04")
	}
	sum := sha256.Sum256(append([]byte(parts[0]+"\n"), key...))
	if !bytes.Equal(sum[:4], id) {
		return nil, fmt.Errorf("witness key: its id is not its key's")
	}
	return cosigner{parts[0], binary.BigEndian.Uint32(id), key[1:]}, nil
}

// files reads the log's files; it is a tlog.TileReader that nothing is believed of.
type files struct{ location string }

func (f files) read(path string) ([]byte, error) {
	if !strings.HasPrefix(f.location, "http://") {
		return os.ReadFile(filepath.Join(f.location, path))
	}
	answer, err := http.Get(f.location + "/" + path)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != 200 {
		return nil, fmt.Errorf("%s: %s", path, answer.Status)
	}
	return io.ReadAll(answer.Body)
}

func (f files) Height() int                         { return 8 }
func (f files) SaveTiles(_ []tlog.Tile, _ [][]byte) {}
func (f files) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	out := make([][]byte, len(tiles))
	for i, tile := range tiles {
		data, err := f.read("tile/" + strings.TrimPrefix(tile.Path(), "tile/8/"))
		if err != nil {
			return nil, err
		}
		out[i] = data
	}
	return out, nil
}

// entries reads one bundle: each entry is a big-endian uint16 length and its bytes.
func (f files) entries(first, size int64) ([][]byte, error) {
	width := size - first
	if width > 256 {
		width = 256
	}
	path := "tile/entries" + strings.TrimPrefix(tlog.Tile{H: 8, L: 0, N: first / 256, W: int(width)}.Path(), "tile/8/0")
	data, err := f.read(path)
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for len(data) > 0 {
		if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
			return nil, fmt.Errorf("%s: cut short", path)
		}
		end := 2 + int(binary.BigEndian.Uint16(data))
		out, data = append(out, data[2:end]), data[end:]
	}
	if int64(len(out)) != width {
		return nil, fmt.Errorf("%s: holds %d entries, not %d", path, len(out), width)
	}
	return out, nil
}

func openHead(f files, want checks) (tree tlog.Tree, cosigned int, err error) {
	raw, err := f.read("checkpoint")
	if err != nil {
		return
	}
	key, err := note.NewVerifier(want.Log)
	if err != nil {
		return
	}
	known := []note.Verifier{key}
	for _, vkey := range want.Witnesses {
		witness, err := newCosigner(vkey)
		if err != nil {
			return tree, 0, err
		}
		known = append(known, witness)
	}
	opened, err := note.Open(raw, note.VerifierList(known...))
	if err != nil {
		return
	}
	signers := map[string]bool{}
	for _, sig := range opened.Sigs {
		signers[sig.Name] = true
	}
	if cosigned = len(signers) - 1; !signers[key.Name()] || cosigned < want.Quorum {
		return tree, 0, fmt.Errorf("checkpoint: %d of %d needed cosignatures, signed by the log: %v", cosigned, want.Quorum, signers[key.Name()])
	}
	origin, rest, _ := strings.Cut(opened.Text, "\n")
	if origin != key.Name() {
		return tree, 0, fmt.Errorf("checkpoint: origin is %s", origin)
	}
	tree, err = tlog.ParseTree([]byte("go.sum database tree\n" + rest)) // the same lines under sumdb's own origin
	return
}

// checkEntries grows the tree again from the entries alone: its root and every tile must be the ones served. (TileHashReader of this version
// leaves some tiles unchecked where one tile holds several of the tree's peaks.)
func checkEntries(f files, tree tlog.Tree) error {
	var stored []tlog.Hash
	grown := tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(indexes))
		for i, index := range indexes {
			out[i] = stored[index]
		}
		return out, nil
	})
	for first := int64(0); first < tree.N; first += 256 {
		entries, err := f.entries(first, tree.N)
		if err != nil {
			return err
		}
		for i, entry := range entries {
			hashes, err := tlog.StoredHashes(first+int64(i), entry, grown)
			if err != nil {
				return err
			}
			stored = append(stored, hashes...)
		}
	}
	if root, err := tlog.TreeHash(tree.N, grown); err != nil || root != tree.Hash {
		return fmt.Errorf("the entries do not give the root (%v)", err)
	}
	for _, tile := range tlog.NewTiles(8, 0, tree.N) {
		if tile.W != 256 && int64(tile.W) != tree.N>>uint(8*tile.L)%256 {
			continue // a narrower partial tile, of an older head
		}
		want, err := tlog.ReadTileData(tile, grown)
		if err != nil {
			return err
		}
		if got, err := f.ReadTiles([]tlog.Tile{tile}); err != nil || !bytes.Equal(got[0], want) {
			return fmt.Errorf("%s: is not what the entries give (%v)", tile.Path(), err)
		}
	}
	return nil
}

func checkProofs(tree tlog.Tree, reader tlog.HashReader, want checks) error {
	for _, r := range want.Records {
		leaf, err := reader.ReadHashes([]int64{tlog.StoredHashIndex(0, r.Index)})
		if err != nil {
			return err
		}
		if err := tlog.CheckRecord(r.Path, tree.N, tree.Hash, r.Index, leaf[0]); err != nil {
			return fmt.Errorf("inclusion of %d: %w", r.Index, err)
		}
		made, err := tlog.ProveRecord(tree.N, r.Index, reader)
		if err != nil || fmt.Sprint(made) != fmt.Sprint(tlog.RecordProof(r.Path)) {
			return fmt.Errorf("inclusion of %d: Go's own proof differs (%v)", r.Index, err)
		}
	}
	for _, t := range want.Trees {
		if err := tlog.CheckTree(t.Path, tree.N, tree.Hash, t.Old, t.Root); err != nil {
			return fmt.Errorf("consistency from %d: %w", t.Old, err)
		}
		made, err := tlog.ProveTree(tree.N, t.Old, reader)
		if err != nil || fmt.Sprint(made) != fmt.Sprint(tlog.TreeProof(t.Path)) {
			return fmt.Errorf("consistency from %d: Go's own proof differs (%v)", t.Old, err)
		}
	}
	return nil
}

func run() error {
	var want checks
	if err := json.NewDecoder(os.Stdin).Decode(&want); err != nil {
		return err
	}
	f := files{strings.TrimRight(os.Args[1], "/")}
	tree, cosigned, err := openHead(f, want)
	if err != nil {
		return err
	}
	reader := tlog.TileHashReader(tree, f)
	if root, err := tlog.TreeHash(tree.N, reader); err != nil || root != tree.Hash {
		return fmt.Errorf("tiles do not give the root (%v)", err)
	}
	if err := checkEntries(f, tree); err != nil {
		return err
	}
	if err := checkProofs(tree, reader, want); err != nil {
		return err
	}
	fmt.Printf("{\"size\":%d,\"cosigned\":%d}\n", tree.N, cosigned)
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, strings.ReplaceAll(err.Error(), "\n", " "))
		os.Exit(1)
	}
}
