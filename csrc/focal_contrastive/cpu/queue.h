// The tiles of a call, handed to all threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "layout.h"

namespace merc::focal_contrastive::cpu {

// Hands the tiles to all threads. `compute(tile, worker)` runs at any time, `add(tile, worker)` when the tiles that
// stand before it at either block have added. What one throws ends all: nobody waits for a tile that does not come.
template <class Compute, class Add>
void run_tiles(const Layout& layout, int64_t workers, const Compute& compute, const Add& add) {
  const std::vector<Tile>& tiles = layout.tiles();
  const auto added = std::make_unique<std::atomic<int>[]>(layout.blocks().size());
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (size_t i = next++; i < tiles.size() && !failed; i = next++) {
        const Tile& tile = tiles[i];
        try {
          compute(tile, worker);
          while (added[tile.rows].load(std::memory_order_acquire) != tile.row_position ||
                 added[tile.columns].load(std::memory_order_acquire) != tile.column_position) {
            if (failed) {
              return;
            }
            std::this_thread::yield();
          }
          add(tile, worker);
        } catch (...) {
          failed = true;
          throw;
        }
        added[tile.rows].fetch_add(1, std::memory_order_release);
        if (!tile.diagonal()) {
          added[tile.columns].fetch_add(1, std::memory_order_release);
        }
      }
    }
  });
}

// Things of `width` numbers that a thread should at least have to do, to be worth its while.
inline int64_t grain(int64_t width) { return 16384 / std::max<int64_t>(width, 1) + 1; }

}  // namespace merc::focal_contrastive::cpu
