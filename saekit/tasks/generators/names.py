"""First names that many tokenizers have as one token."""

HE = (
    "Adam", "Alex", "Ben", "Bob", "Charles", "Daniel", "David", "Frank", "George", "Henry", "Jack", "James", "Jim",
    "John", "Joseph", "Kevin", "Mark", "Martin", "Max", "Michael", "Paul", "Peter", "Richard", "Robert", "Sam", "Simon",
    "Steven", "Thomas", "Tim", "Tom",
)  # fmt: skip
SHE = (
    "Alice", "Amy", "Anna", "Claire", "Elizabeth", "Emily", "Emma", "Helen", "Jane", "Jennifer", "Jessica", "Julia",
    "Karen", "Kate", "Laura", "Lily", "Linda", "Lisa", "Lucy", "Maria", "Martha", "Mary", "Mia", "Nancy", "Rachel",
    "Rebecca", "Rose", "Sarah", "Sue", "Susan",
)  # fmt: skip
