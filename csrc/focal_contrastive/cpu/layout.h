// Where the rows of a call stand: per group the kept ones, anchors first, and within each segment label by label, so
// that the positives of a row are a run in each segment. Blocks of rows, and the tiles: pairs of blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace merc::focal_contrastive::cpu {

// The widest vector: rows of a tile are padded to it, and blocks begin at its multiples.
constexpr int64_t kLanes = 16;
constexpr int64_t whole(int64_t n, int64_t vector = kLanes) { return (n + vector - 1) / vector * vector; }

// Rows [begin, end) of all groups together.
struct Range {
  int64_t begin = 0, end = 0;

  int64_t size() const { return end - begin; }
  Range within(const Range& other) const {
    const int64_t low = std::max(begin, other.begin);
    return {low, std::max(low, std::min(end, other.end))};
  }
};

// 0: anchors; 1: prototypes that are none; 2: refs.
constexpr int kSegments = 3;

struct Block {
  Range rows;
  int segment;
  int64_t padded_begin;  // its first row, if every block is padded
  int tiles = 0;         // that it takes part in
};

// Rows of one block as anchors, of the other as candidates; `mutual`: and the other way round.
struct Tile {
  int rows, columns;                  // blocks
  int row_position, column_position;  // among the tiles of either block
  bool mutual;

  bool diagonal() const { return rows == columns; }
};

struct Sizes {
  int64_t groups, embeddings, prototypes, refs;
  bool prototype_anchors, ref_only;
  bool all_anchors = false;  // in a backward pass: of every segment, where stats says so

  int64_t rows() const { return embeddings + prototypes + refs; }  // of a group
  int segment(int64_t source) const {
    return source < embeddings || (prototype_anchors && source < embeddings + prototypes) ? 0
           : source < embeddings + prototypes                                             ? 1
                                                                                          : 2;
  }
};

// `order`, (groups, rows): of each place the row that stands there, with its label's number in the high half; -1 where
// no row does. It is all that a backward pass needs to lay out the same again.
class Layout {
 public:
  Layout(const Sizes& sizes, const int64_t* order) : sizes_(sizes), label_of_(sizes.groups * sizes.rows()) {
    for (int64_t group = 0; group < sizes.groups; ++group) {
      add_group(group, order);
    }
  }

  // Sorts a group's rows with a label other than `dropped`.
  static void sort_group(const Sizes& sizes, const int64_t* labels, int64_t dropped, int64_t* order) {
    struct Labelled {
      int64_t label, source;
    };
    std::vector<Labelled> rows;
    rows.reserve(sizes.rows());
    for (int64_t source = 0; source < sizes.rows(); ++source) {
      if (labels[source] != dropped) {
        rows.push_back({labels[source], source});
      }
    }
    std::sort(rows.begin(), rows.end(), [](const Labelled& a, const Labelled& b) {
      return a.label != b.label ? a.label < b.label : a.source < b.source;
    });
    // Labels stand in the order in which they first come, so that their names show nowhere.
    std::vector<Range> runs;
    for (int64_t i = 0; i < static_cast<int64_t>(rows.size()); ++i) {
      if (i == 0 || rows[i].label != rows[i - 1].label) {
        runs.push_back({i, i});
      }
      ++runs.back().end;
    }
    std::sort(runs.begin(), runs.end(), [&](const Range& a, const Range& b) {
      return rows[a.begin].source < rows[b.begin].source;
    });
    int64_t at = 0;
    for (int segment = 0; segment < kSegments; ++segment) {
      for (size_t number = 0; number < runs.size(); ++number) {
        for (int64_t i = runs[number].begin; i < runs[number].end; ++i) {
          if (sizes.segment(rows[i].source) == segment) {
            order[at++] = static_cast<int64_t>(number) << 32 | rows[i].source;
          }
        }
      }
    }
    std::fill(order + at, order + sizes.rows(), int64_t{-1});
  }

  static int64_t source(int64_t order) { return order & 0xffffffff; }

  const std::vector<Block>& blocks() const { return blocks_; }
  const std::vector<Tile>& tiles() const { return tiles_; }
  const std::vector<Range>& segments() const { return segments_; }  // kSegments a group
  const Range* runs(int64_t row) const { return labels_[label_of_[row]].runs; }
  int64_t largest_block() const { return largest_; }
  int64_t padded_rows() const { return padded_; }

  // The number of positives of an anchor.
  int64_t positives(int64_t row) const {
    const Range* of = runs(row);
    return (sizes_.ref_only ? 0 : of[0].size() - 1) + of[1].size() + of[2].size();
  }

  // Whether an anchor of the one and a candidate of the other block can share a label: rows are sorted.
  bool has_positives(const Tile& tile) const {
    const Range a = blocks_[tile.rows].rows, b = blocks_[tile.columns].rows;
    return label_of_[a.begin] <= label_of_[b.end - 1] && label_of_[b.begin] <= label_of_[a.end - 1];
  }

 private:
  struct Label {
    Range runs[kSegments];  // the rows of this label
  };

  void add_group(int64_t group, const int64_t* order) {
    const int64_t first = group * sizes_.rows();
    const int base = static_cast<int>(labels_.size());
    int64_t row = first;
    const int first_block = static_cast<int>(blocks_.size());
    int64_t kept = 0;
    while (kept < sizes_.rows() && order[first + kept] >= 0) {
      ++kept;
    }
    for (int segment = 0; segment < kSegments; ++segment) {
      const int64_t begin = row;
      for (; row < first + kept && sizes_.segment(source(order[row])) == segment; ++row) {
        const int label = base + static_cast<int>(order[row] >> 32);
        if (label >= static_cast<int>(labels_.size())) {
          labels_.resize(label + 1);
        }
        label_of_[row] = label;
        Range& run = labels_[label].runs[segment];
        run = run.size() ? Range{run.begin, row + 1} : Range{row, row + 1};
      }
      segments_.push_back({begin, row});
      add_blocks({begin, row}, segment, kept);
    }
    add_tiles(first_block, static_cast<int>(blocks_.size()));
  }

  // Small enough for several threads, and for a tile to stay in the cache; large enough for a fast matrix product.
  void add_blocks(const Range& segment, int number, int64_t kept) {
    const int64_t size = std::clamp<int64_t>((kept + 7) / 8, kSmallest, kLargest);
    const int64_t count = (segment.size() + size - 1) / size, vectors = whole(segment.size()) / kLanes;
    for (int64_t i = 0; i < count; ++i) {
      const auto edge = [&](int64_t block) {
        return segment.begin + std::min(segment.size(), vectors * block / count * kLanes);
      };
      blocks_.push_back({{edge(i), edge(i + 1)}, number, padded_});
      padded_ += whole(blocks_.back().rows.size());
      largest_ = std::max(largest_, blocks_.back().rows.size());
    }
  }

  // In rounds: the tiles of one round share no block.
  void add_tiles(int begin, int end) {
    const int count = end - begin;
    for (int round = 0; round < count; ++round) {
      for (int i = 0; i < count; ++i) {
        const int j = (round - i + count) % count;
        if (i > j || !meet(blocks_[begin + i].segment, blocks_[begin + j].segment)) {
          continue;
        }
        Block &rows = blocks_[begin + i], &columns = blocks_[begin + j];
        const bool mutual = i != j && (columns.segment == 0 || sizes_.all_anchors);
        Tile tile{begin + i, begin + j, rows.tiles++, 0, mutual};
        tile.column_position = i == j ? tile.row_position : columns.tiles++;
        tiles_.push_back(tile);
      }
    }
  }

  // Whether rows of two segments, which stand in order, are anchor and candidate; but what refs have from each other is
  // nobody's to make here.
  bool meet(int first, int second) const {
    if (first == 0) {
      return second != 0 || !sizes_.ref_only;
    }
    return sizes_.all_anchors && first == 1;
  }

  static constexpr int64_t kSmallest = 64, kLargest = 192;

  Sizes sizes_;
  std::vector<int> label_of_;
  std::vector<Label> labels_;
  std::vector<Range> segments_;
  std::vector<Block> blocks_;
  std::vector<Tile> tiles_;
  int64_t largest_ = 0, padded_ = 0;
};

}  // namespace merc::focal_contrastive::cpu
